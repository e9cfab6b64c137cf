"""RQ: `Queue.enqueue_many`, results by `Job.latest_result`.

Variants: simple (SimpleWorker), fork (its default Worker).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from millrace_bench.queue_peers import program

_CHUNK = 500


def answer(text: str) -> str:
    """The job."""
    program.first_job()
    return text


class Rq:
    packages = ("rq", "redis", "hiredis")

    def __init__(self, url: str, variant: str):
        import redis
        from rq import Queue, SimpleWorker, Worker
        from rq.job import Job
        from rq.serializers import JSONSerializer

        self._connection = redis.Redis.from_url(url)
        self._serializer: Any = JSONSerializer
        self._queue = Queue("bench", connection=self._connection, serializer=JSONSerializer)
        self._job = Job
        self._worker: Any = SimpleWorker if variant == "simple" else Worker

    def enqueue(self, texts: Sequence[str]) -> list[Any]:
        prepare: Any = self._queue.prepare_data
        jobs: list[Any] = []
        for at in range(0, len(texts), _CHUNK):
            jobs += self._queue.enqueue_many(
                [prepare("millrace_bench.queue_peers.rq.answer", (text,)) for text in texts[at : at + _CHUNK]]
            )
        return [job.id for job in jobs]

    def result_keys(self, handles: Sequence[Any]) -> list[str]:
        return [f"rq:results:{job_id}" for job_id in handles]

    def read(self, handles: Sequence[Any]) -> list[str]:
        answers: list[Any] = []
        for at in range(0, len(handles), _CHUNK):
            some = handles[at : at + _CHUNK]
            jobs: list[Any] = self._job.fetch_many(some, self._connection, serializer=self._serializer)
            for job in jobs:
                result = job.latest_result()
                while result is None:
                    # With a timeout it blocks for the result, seconds at least.
                    result = job.latest_result(timeout=10)
                answers.append(result.return_value)
        return answers

    def work(self) -> None:
        worker = self._worker([self._queue], connection=self._connection, serializer=self._serializer)
        worker.work(logging_level="WARNING")


if __name__ == "__main__":
    sys.exit(program.run(Rq))
