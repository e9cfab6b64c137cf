"""One background thread with an event loop, so that blocking callers share the asynchronous implementation."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from millrace_schemas.aio import end_tasks

from .errors import ClientClosed

R = TypeVar("R")

_CLOSED = "the client is closed"


class Portal:
    """Runs coroutines for any number of threads. The thread starts here and ends with `close`, or with the process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        #: Held from the look whether it is open until what is to run is scheduled: behind its end nothing would.
        self._lock = threading.RLock()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="millrace-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """The coroutine's result; Ctrl-C in the caller cancels it.

        Raises ClientClosed after `close`, also while the coroutine runs, in a forked child, and in the portal's own
        thread.
        """
        try:
            future = self._schedule(coroutine)
        except ClientClosed:
            coroutine.close()
            raise
        try:
            return future.result()
        except CancelledError:
            if self._closing:
                raise ClientClosed(_CLOSED) from None
            raise
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends what still runs for other threads."""
        if self._unusable() is not None:
            return
        with self._lock:
            if self._closing:
                return  # another thread does it
            self._closing = True
        asyncio.run_coroutine_threadsafe(_end_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def closed(self) -> bool:
        return self._unusable() is not None

    def _schedule(self, coroutine: Coroutine[Any, Any, R]) -> Future[R]:
        # Looked at without the lock first: in a forked child nobody may be left to give it back.
        reason = self._unusable()
        if reason is None:
            with self._lock:
                reason = self._unusable()
                if reason is None:
                    return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        raise ClientClosed(reason)

    def _unusable(self) -> str | None:
        if self._pid != os.getpid():
            return "this client was made before a fork; make one in each process"
        if self._closing:
            return _CLOSED
        if threading.current_thread() is self._thread:
            return "Client blocks; inside a coroutine use AsyncClient"
        return None


async def _end_others() -> None:
    """Ends all tasks of the loop but the one that this is."""
    await end_tasks(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))
