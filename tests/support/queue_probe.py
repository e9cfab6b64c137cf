"""What a producer does to a queue, written out by hand from the key map, and what an inspector looks at."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import redis

from millrace_schemas import (
    GROUP,
    TERMINAL,
    Event,
    Lane,
    QueueKeys,
    Request,
    Result,
    Sampling,
    decode,
    encode,
    new_job_id,
    queue_of,
)

MODEL = "letters"


class QueueProbe:
    def __init__(self, url: str, model: str = MODEL):
        self.model = model
        self.redis = redis.Redis.from_url(url, protocol=2, socket_timeout=30)
        self.keys = QueueKeys(queue_of(model))

    def submit(self, prompt: Iterable[int] | str = (1, 2, 3), *, max_tokens: int = 16, **fields: Any) -> str:
        sampling = fields.pop("sampling", None) or Sampling(max_tokens=max_tokens, temperature=0.0, seed=1)
        given: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": tuple(prompt)}
        return self.submit_request(Request(model=self.model, sampling=sampling, **given, **fields))

    def submit_request(self, request: Request) -> str:
        return self.submit_bytes(encode(request), request.lane, stream=request.stream, deadline=request.deadline)

    def submit_bytes(
        self, data: bytes, lane: Lane = Lane.INTERACTIVE, *, stream: bool = False, deadline: float | None = None
    ) -> str:
        job_id = new_job_id(self.keys.queue)
        fields: dict[str, Any] = {
            "request": data,
            "lane": str(lane),
            "state": "queued",
            "attempts": 0,
            "created_at": f"{self.now():.6f}",
            "stream": int(stream),
        }
        with self.redis.pipeline() as pipe:
            if deadline is not None:
                fields["deadline"] = repr(deadline)
                pipe.zadd(self.keys.deadlines, {job_id: deadline})
            pipe.hset(self.keys.job(job_id), mapping=fields)
            pipe.expire(self.keys.job(job_id), 7 * 86_400)
            pipe.xadd(self.keys.lanes[lane], {"job": job_id})
            pipe.execute()
        return job_id

    def cancel_running(self, job_id: str, *, tell: bool = True) -> None:
        """Asks for it; without `tell` the worker has to notice by itself."""
        self.redis.hset(self.keys.job(job_id), "cancel_requested", 1)
        if tell:
            self.redis.publish(self.keys.control, f"cancel {job_id}")

    def now(self) -> float:
        seconds, micros = self.redis.time()
        return float(seconds + micros / 1e6)

    def job(self, job_id: str) -> dict[str, str]:
        found = self.redis.hgetall(self.keys.job(job_id))
        return {k.decode(): v.decode(errors="replace") for k, v in found.items()}

    def state(self, job_id: str) -> str:
        return self.job(job_id).get("state", "missing")

    def result(self, job_id: str) -> Result | None:
        data = self.redis.get(self.keys.result(job_id))
        return None if data is None else decode(data, Result)

    def wait(self, job_ids: Iterable[str], timeout: float = 30.0) -> dict[str, Result]:
        """The results of all jobs; fails when one of them has none in time."""
        left, results = set(job_ids), {}
        limit = time.monotonic() + timeout
        while left:
            ids = sorted(left)
            found = self.redis.mget([self.keys.result(i) for i in ids])
            for job_id, data in zip(ids, found, strict=True):
                if data is not None:
                    results[job_id] = decode(data, Result)
                    left.discard(job_id)
            if left and time.monotonic() > limit:
                raise AssertionError({i: self.job(i) for i in sorted(left)[:5]})
            time.sleep(0.02)
        return results

    def wait_for(self, what: str, condition: Any, timeout: float = 20.0) -> None:
        limit = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < limit, f"did not happen: {what}"
            time.sleep(0.01)

    def checkpoint(self, job_id: str) -> int:
        """Tokens checkpointed so far."""
        return int(self.redis.strlen(self.keys.tokens(job_id))) // 4

    def events(self, job_id: str) -> list[Event]:
        return [decode(fields[b"e"], Event) for _, fields in self.redis.xrange(self.keys.events(job_id))]

    def dead(self) -> list[dict[str, str]]:
        found = self.redis.xrange(self.keys.dead)
        return [{k.decode(): v.decode(errors="replace") for k, v in fields.items()} for _, fields in found]

    def workers(self) -> list[str]:
        return [name.decode() for name in self.redis.zrange(self.keys.workers, 0, -1)]

    def assert_quiet(self) -> None:
        """Nothing is left of jobs that ended: no entries, none pending, and every other key has a time to live."""
        for stream in self.keys.lanes.values():
            assert self.redis.xlen(stream) == 0
            assert self.redis.xpending(stream, GROUP)["pending"] == 0
        assert self.redis.zcard(self.keys.delayed) == 0
        assert self.redis.zcard(self.keys.deadlines) == 0
        keep = {*self.keys.lanes.values(), self.keys.dead, self.keys.workers, "millrace:models"}
        for key in self.redis.scan_iter():
            if key.decode() not in keep:
                # -2: it ended meanwhile.
                assert self.redis.pttl(key) != -1, key
            assert b":tokens:" not in key
        for key in self.redis.scan_iter(self.keys.job("*")):
            assert self.redis.hget(key, "state").decode() in TERMINAL
