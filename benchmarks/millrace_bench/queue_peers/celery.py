"""Celery: a group's `apply_async`, results by `join_native`. Variants: solo, threads, prefork (its pools)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from millrace_bench.queue_peers import program

#: Processes or threads of a pool.
_POOL = 2
_SETTINGS = {
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_expires": 3600,
    "worker_prefetch_multiplier": 128,
    "worker_send_task_events": False,
    "worker_hijack_root_logger": False,
    "broker_connection_retry_on_startup": True,
}


def answer(text: str) -> str:
    """The job."""
    program.first_job()
    return text


class Celery:
    packages = ("celery", "kombu", "redis", "hiredis")

    def __init__(self, url: str, variant: str):
        from celery import Celery as App

        self._variant = variant
        self._app = App("bench", broker=url, backend=url)
        self._app.conf.update(_SETTINGS)
        self._task = self._app.task(answer, name="answer")

    def enqueue(self, texts: Sequence[str]) -> list[Any]:
        from celery import group

        result: Any = group(self._task.s(text) for text in texts).apply_async()
        return list(result.results)

    def result_keys(self, handles: Sequence[Any]) -> list[str]:
        return [f"celery-task-meta-{result.id}" for result in handles]

    def read(self, handles: Sequence[Any]) -> list[str]:
        from celery.result import ResultSet

        found: list[str] = ResultSet(list(handles), app=self._app).join_native()
        return found

    def work(self) -> None:
        pool = ["--pool", self._variant] + ([] if self._variant == "solo" else ["--concurrency", str(_POOL)])
        quiet = ["--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        self._app.worker_main(["worker", *pool, *quiet])


if __name__ == "__main__":
    sys.exit(program.run(Celery))
