"""`millrace bulk`: RQ's worker and scheduler in processes of their own, and a loop that hands them what is due."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Worker

from millrace.connection import load_script
from millrace_schemas.keys import BATCHES_DUE, BULK_FILES_EXPIRING

from . import log
from .tasks import SWEEP, Runtime, configure, enqueue_step, enqueue_sweep, queue, waiting_in

#: Seconds between two looks for batches that are due, and batches that one look hands out.
_LOOK_EVERY = 0.2
_MOST = 100
#: Seconds between two looks for files that have expired.
_SWEEP_EVERY = 60.0
#: Seconds that a worker has to end its turn; whatever it does not end, its successor does.
_GRACE = 20.0
_PAUSE = 1.0
_PR_SET_PDEATHSIG = 1
#: Gateways, workers and Redis on the same machine have interactive jobs to see to.
_NICE = 5
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT})


class _Worker(Worker):
    """RQ's, which waits longer and longer for a Redis that is away: not for a minute once it is back."""

    max_connection_wait_time = 2.0


class BulkService:
    """Runs until a signal, or until `stop` is called from a signal handler."""

    def __init__(self, runtime: Runtime, workers: int = 1):
        self._runtime = runtime
        self._count = workers
        self._workers: list[BaseProcess] = []
        self._redis = redis.Redis.from_url(runtime.redis_url, retry=Retry(NoBackoff(), 0), socket_timeout=5)
        self._queue = queue(self._redis)
        self._sweep_at = 0.0

    def run(self) -> None:
        """Ends with KeyboardInterrupt or SystemExit, when its workers have ended, too."""
        try:
            while True:
                self._look_after_workers()
                self._sweep()
                time.sleep(_LOOK_EVERY if self._hand_out() else _PAUSE)
        finally:
            self._stop()

    def _hand_out(self) -> bool:
        """Makes an RQ job for every batch that is due and has none that waits. False: Redis is away."""
        try:
            hold = max(self._runtime.settings.lease, 5.0)
            source, _ = load_script("batch_due")
            ids: list[bytes] = self._redis.eval(source, 1, BATCHES_DUE, str(_MOST), str(hold))
            # Where many batches take turns, one waits longer than it is held: more and more of its turns would wait.
            waiting = waiting_in(self._queue) if ids else set()
            for batch_id in ids:
                if batch_id.decode() not in waiting:
                    enqueue_step(self._queue, batch_id.decode())
        except (RedisError, OSError) as e:
            log.redis_away(str(e))
            return False
        return True

    def _sweep(self) -> None:
        """Has files deleted whose time is over. Several services may do so at once."""
        now = time.monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + _SWEEP_EVERY
        # When Redis is away, the next look for batches says so.
        with suppress(RedisError, OSError):
            if self._redis.zcount(BULK_FILES_EXPIRING, "-inf", time.time()) and SWEEP not in waiting_in(self._queue):
                enqueue_sweep(self._queue)

    def _look_after_workers(self) -> None:
        self._workers = [worker for worker in self._workers if worker.is_alive()]
        while len(self._workers) < self._count:
            worker = multiprocessing.get_context("fork").Process(target=_work, args=(self._runtime,))
            # A signal to stop that came between the fork and the child's own handlers would be lost.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
            try:
                worker.start()
                self._workers.append(worker)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _stop(self) -> None:
        for worker in self._workers:
            worker.terminate()
        limit = time.monotonic() + _GRACE
        for worker in self._workers:
            worker.join(max(limit - time.monotonic(), 0.1))
            if worker.is_alive():
                worker.kill()
                worker.join()
        self._redis.close()


def _work(runtime: Runtime) -> None:
    """One RQ worker with the scheduler of its queue."""
    _die_with_parent()
    os.nice(_NICE)
    # RQ forks one process a job, and another for its scheduler; none of them may outlive this one.
    os.register_at_fork(after_in_child=_die_with_parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    # Whoever is at the terminal stops the service, which stops its workers.
    configure(runtime)
    logging.getLogger("rq").setLevel(logging.WARNING)
    target = queue(redis.Redis.from_url(runtime.redis_url))
    _Worker([target], connection=target.connection, serializer="json", log_job_description=False).work(
        with_scheduler=True, logging_level="WARNING"
    )


def _die_with_parent() -> None:
    """On Linux. Everything that these processes do can be done again by others."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
