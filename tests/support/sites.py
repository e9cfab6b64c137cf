"""One queue with one worker, twice: in a real Redis with the fake worker, and in memory. Tests drive both alike."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Any

import msgspec
import redis

from fake_worker import FakeWorker, answer_of, register
from millrace import AsyncClient, Client, ErrorCode, ErrorInfo, JobState, Lane, ModelInfo, Request, Result
from millrace.testing import FakeMillrace
from millrace_schemas import MODELS, QueueKeys, decode, encode, queue_of
from millrace_worker.stream.connection import connect, connect_blocking
from millrace_worker.stream.upkeep import Upkeep
from queue_probe import QueueProbe
from stream_parts import Parts


class Site(ABC):
    """Starts with the model "demo" registered and nobody at work."""

    @abstractmethod
    def client(self, model: str | None = None) -> Client: ...

    @abstractmethod
    def async_client(self, model: str | None = None) -> AsyncClient: ...

    @abstractmethod
    def register(self, name: str, **info: Any) -> None: ...

    @abstractmethod
    def unregister(self, name: str) -> None: ...

    @abstractmethod
    def work(self, *, hold: bool = False) -> None:
        """A worker answers from now on; with `hold`, once `release` is called."""

    @abstractmethod
    def take(self, job_id: str) -> None:
        """Returns once the held worker has this job in progress."""

    @abstractmethod
    def release(self) -> None: ...

    @abstractmethod
    def kill(self, job_id: str) -> None:
        """Ends a queued job as one that has cost too many attempts."""

    @abstractmethod
    def idle(self, seconds: float) -> None:
        """Lets time pass; then a worker looks after the queue without taking a job."""

    @abstractmethod
    def waiting(self) -> list[Request]:
        """Requests in the lanes of "demo", in order."""

    @abstractmethod
    def close(self) -> None: ...


class RealSite(Site):
    def __init__(self, url: str):
        self._url = url
        self._raw = redis.Redis.from_url(url, protocol=2)
        self._keys = QueueKeys("demo")
        self._worker: FakeWorker | None = None
        register(url)

    def client(self, model: str | None = None) -> Client:
        return Client(self._url, model)

    def async_client(self, model: str | None = None) -> AsyncClient:
        return AsyncClient(self._url, model)

    def register(self, name: str, **info: Any) -> None:
        register(self._url, name, **info)

    def unregister(self, name: str) -> None:
        self._raw.delete(QueueKeys(queue_of(name)).model)
        self._raw.zrem(MODELS, name)

    def work(self, *, hold: bool = False) -> None:
        self._worker = FakeWorker(self._url, hold=hold).__enter__()

    def take(self, job_id: str) -> None:
        limit = time.monotonic() + 10
        while self._raw.hget(self._keys.job(job_id), "state") != b"in_progress":
            assert time.monotonic() < limit
            time.sleep(0.005)

    def release(self) -> None:
        assert self._worker is not None
        self._worker.release()

    def kill(self, job_id: str) -> None:
        error = ErrorInfo(ErrorCode.TOO_MANY_ATTEMPTS, "it died")
        result = Result(id=job_id, model="demo", state=JobState.FAILED, error=error, attempts=1)
        self._raw.hset(self._keys.job(job_id), mapping={"state": "failed", "attempts": 1, "finished_at": time.time()})
        self._raw.set(self._keys.result(job_id), encode(result))
        fields = {"job": job_id, "lane": "interactive", "code": error.code, "reason": error.message, "attempts": 1}
        self._raw.xadd(self._keys.dead, fields)
        self._raw.publish(self._keys.done(job_id), "failed")

    def idle(self, seconds: float) -> None:
        async def look_after() -> None:
            client, blocking = connect(self._url), connect_blocking(self._url, 0.05)
            parts = Parts(QueueProbe(self._url, "demo"), client, blocking)
            writer = asyncio.create_task(parts.publisher.run())
            await Upkeep(client, self._keys, parts.publisher, parts.name, "demo").step()
            parts.publisher.stop()
            await writer
            await client.aclose()
            await blocking.aclose()
            parts.probe.redis.close()

        time.sleep(seconds)
        asyncio.run(look_after())

    def waiting(self) -> list[Request]:
        ids = [
            fields[b"job"].decode()
            for lane in (Lane.INTERACTIVE, Lane.BATCH)
            for _, fields in self._raw.xrange(self._keys.lanes[lane])
        ]
        return [decode(self._raw.hget(self._keys.job(i), "request"), Request) for i in ids]

    def close(self) -> None:
        if self._worker is not None:
            self._worker.__exit__(None, None, None)
        self._raw.close()


class MemorySite(Site):
    def __init__(self) -> None:
        self.fake = FakeMillrace(_answer, models=[_info("demo")], manual=True)

    def client(self, model: str | None = None) -> Client:
        return self.fake.client(model)

    def async_client(self, model: str | None = None) -> AsyncClient:
        return self.fake.async_client(model)

    def register(self, name: str, **info: Any) -> None:
        self.fake.add_model(_info(name, **info))

    def unregister(self, name: str) -> None:
        self.fake.remove_model(name)

    def work(self, *, hold: bool = False) -> None:
        self.fake.manual = hold
        if not hold:
            self.release()

    def take(self, job_id: str) -> None:
        self.fake.start(job_id)

    def release(self) -> None:
        self.fake.manual = False
        for job in self.fake.jobs:
            if job.result is None:
                self.fake.finish(job)

    def kill(self, job_id: str) -> None:
        self.fake.fail(job_id, ErrorCode.TOO_MANY_ATTEMPTS, "it died")

    def idle(self, seconds: float) -> None:
        self.fake.advance(seconds)

    def waiting(self) -> list[Request]:
        requests = [job.request for job in self.fake.jobs if job.state is JobState.QUEUED]
        return sorted(requests, key=lambda request: request.lane is Lane.BATCH)

    def close(self) -> None:
        self.fake.close()


def _info(name: str, **info: Any) -> ModelInfo:
    """What `register` puts into Redis."""
    base = ModelInfo(name=name, max_model_len=512, vocab_size=256, has_chat_template=True)
    return msgspec.structs.replace(base, **info)


def _answer(request: Request) -> str | ErrorInfo:
    text = answer_of(request)
    return ErrorInfo(ErrorCode.INTERNAL, "told to fail") if text.startswith("FAIL") else text
