"""One background thread with an event loop, so that blocking callers share the asynchronous implementation."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from .errors import ClientClosed

R = TypeVar("R")


class Portal:
    """Runs coroutines for any number of threads. The thread starts here and ends with `close`, or with the process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="millrace-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """The coroutine's result; Ctrl-C in the caller cancels it.

        Raises ClientClosed after `close`, in a forked child, and in the portal's own thread.
        """
        reason = self._unusable()
        if reason is not None:
            coroutine.close()
            raise ClientClosed(reason)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        if self._unusable() is None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def closed(self) -> bool:
        return self._unusable() is not None

    def _unusable(self) -> str | None:
        if self._pid != os.getpid():
            return "this client was made before a fork; make one in each process"
        if self._loop.is_closed():
            return "the client is closed"
        if threading.current_thread() is self._thread:
            return "Client blocks; inside a coroutine use AsyncClient"
        return None
