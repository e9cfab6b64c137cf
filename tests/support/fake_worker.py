"""Just enough of a worker to end jobs: plain Redis commands, one thread, no lease, no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import redis

from millrace_schemas import (
    GROUP,
    MODELS,
    TERMINAL,
    Choice,
    ErrorCode,
    ErrorInfo,
    Event,
    Finished,
    FinishReason,
    JobState,
    ModelInfo,
    QueueKeys,
    Request,
    Result,
    Started,
    Timings,
    TokenLogprob,
    Tokens,
    TopLogprob,
    Usage,
    WorkerInfo,
    decode,
    encode,
    queue_of,
)


def register(url: str, name: str = "demo", **info: Any) -> ModelInfo:
    """Registers a model for a minute, as its worker would."""
    model = ModelInfo(**{"name": name, "max_model_len": 512, "vocab_size": 256, "has_chat_template": True, **info})
    with redis.Redis.from_url(url) as client:
        client.set(QueueKeys(queue_of(name)).model, encode(model), ex=60)
        client.zadd(MODELS, {name: time.time() + 60})
    return model


def answer_of(request: Request) -> str:
    """What the fake model says: the prompt, or the last message, in capitals."""
    if request.messages is not None:
        return request.messages[-1].content.upper()
    return (request.prompt or " ".join(map(str, request.prompt_token_ids or ()))).upper()


def fake_logprobs(ids: Sequence[int], top: int) -> tuple[TokenLogprob, ...]:
    """Of bytes, which are tokens of their own."""
    return tuple(
        TokenLogprob(
            bytes((i,)).decode(errors="replace"),
            i,
            -0.5,
            (i,),
            tuple(TopLogprob("a", 97, -0.5, (97,)) for _ in range(top)),
        )
        for i in ids
    )


class FakeWorker:
    """Reads both lanes of one queue and completes every job; a prompt that starts with "fail" fails.

    With `hold`, jobs are taken (in_progress) and kept until `release()`.
    """

    def __init__(self, url: str, model: str = "demo", *, hold: bool = False):
        self.info = register(url, model)
        self.keys = QueueKeys(queue_of(model))
        self.taken: list[str] = []
        self.finished: list[str] = []
        self._redis = redis.Redis.from_url(url, protocol=2, socket_timeout=10)
        self._held = threading.Event()
        if not hold:
            self._held.set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> FakeWorker:
        for lane in self.keys.lanes.values():
            self._redis.xgroup_create(lane, GROUP, "0", mkstream=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._held.set()
        self._thread.join()
        self._redis.close()

    def hold(self) -> None:
        self._held.clear()

    def release(self) -> None:
        self._held.set()

    def publish(self, job_id: str, event: Event) -> None:
        self._redis.xadd(self.keys.events(job_id), {"e": encode(event)})

    def _run(self) -> None:
        streams = dict.fromkeys(self.keys.lanes.values(), ">")
        while not self._stop.is_set():
            for lane, entries in self._redis.xreadgroup(GROUP, "fake", streams, count=64, block=50) or ():
                ids = [fields[b"job"].decode() for _, fields in entries]
                for job_id in ids:
                    self._take(job_id)
                self._held.wait()
                for (entry, _), job_id in zip(entries, ids, strict=True):
                    self._finish(lane, entry, job_id)
                self._beat()

    def _beat(self) -> None:
        now = time.time()
        beat = WorkerInfo(
            name="fake", model=self.info.name, host="here", pid=1, device="cpu", started_at=now, beat_at=now,
            finished=len(self.finished), kv_allocated_slots=200, kv_used_slots=190,
        )  # fmt: skip
        self._redis.set(self.keys.worker("fake"), encode(beat), ex=60)
        self._redis.zadd(self.keys.workers, {"fake": now})

    def _take(self, job_id: str) -> None:
        if self._redis.hget(self.keys.job(job_id), "state") == b"queued":
            self._redis.hset(
                self.keys.job(job_id),
                mapping={"state": "in_progress", "attempts": 1, "started_at": time.time(), "worker": "fake"},
            )
        self.taken.append(job_id)

    def _finish(self, lane: bytes, entry: bytes, job_id: str) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            # A job that is cancelled or forgotten meanwhile is looked at again.
            pipe.watch(self.keys.job(job_id))
            job = pipe.hgetall(self.keys.job(job_id))
            pipe.multi()
            pipe.xack(lane, GROUP, entry)
            pipe.xdel(lane, entry)
            if job and job[b"state"].decode() not in TERMINAL:
                result = self._answer(job_id, decode(job[b"request"], Request), job)
                self._end(pipe, job_id, result, stream=job[b"stream"] == b"1")
                if b"tenant" in job:
                    pipe.zrem(self.keys.unfinished(job[b"tenant"].decode()), job_id)
                if b"webhook" in job:
                    pipe.zadd(self.keys.webhooks, {job_id: int(time.time())})
                    pipe.publish(self.keys.webhooks, job_id)
            try:
                pipe.execute()
            except redis.WatchError:
                self._finish(lane, entry, job_id)
                return
        self.finished.append(job_id)

    def _end(self, pipe: Any, job_id: str, result: Result, *, stream: bool) -> None:
        pipe.set(self.keys.result(job_id), encode(result), nx=True, ex=60)
        if result.state is JobState.FAILED and result.error is not None:
            error = result.error
            entry = {"job": job_id, "lane": "interactive", "code": error.code, "reason": error.message, "attempts": 1}
            pipe.xadd(self.keys.failures, entry)
        pipe.hset(self.keys.job(job_id), mapping={"state": str(result.state), "finished_at": time.time()})
        if stream:
            text = result.text
            logprobs = result.choices[0].logprobs if result.choices else None
            first, second = (None, None) if logprobs is None else (logprobs[:1], logprobs[1:2])
            events = [
                Started(attempt=1),
                Tokens(0, (1,), text[:1], logprobs=first),
                Tokens(1, (2,), text[1:], logprobs=second),
                Finished(result),
            ]
            for event in events:
                pipe.xadd(self.keys.events(job_id), {"e": encode(event)})
        pipe.publish(self.keys.done(job_id), str(result.state))

    def _answer(self, job_id: str, request: Request, job: dict[bytes, bytes]) -> Result:
        common: dict[str, Any] = {
            "id": job_id, "model": request.model, "attempts": 1, "worker": "fake", "metadata": request.metadata,
            "timings": Timings(queued=0.01, ttft=0.02, total=0.05),
        }  # fmt: skip
        if job.get(b"cancel_requested") == b"1":
            error = ErrorInfo(ErrorCode.CANCELLED, "cancelled while it ran")
            return Result(state=JobState.CANCELLED, error=error, **common)
        text = answer_of(request)
        if text.startswith("FAIL"):
            return Result(state=JobState.FAILED, error=ErrorInfo(ErrorCode.INTERNAL, "told to fail"), **common)
        ids = tuple(text.encode())
        top = request.sampling.logprobs
        choice = Choice(0, text, ids, FinishReason.STOP, None if top is None else fake_logprobs(ids, top))
        usage = Usage(prompt_tokens=10, completion_tokens=len(text), cached_tokens=8)
        return Result(state=JobState.COMPLETED, choices=(choice,), usage=usage, **common)
