"""What the courier does at once: threads that fetch, store, remove and list."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from millrace_worker.courier_frames import Done, Fetch, FromCourier, Page, Start, Store, ToCourier

from .refused import Refused

if TYPE_CHECKING:
    from .bucket import Bucket

#: Listings that failed are tried again after so many seconds, twice as many each time, up to the second.
_LIST_AGAIN, _MOST_LIST_AGAIN = 1.0, 60.0


class Courier:
    """Answers each request once, in any order, through `send`, which any thread may call."""

    def __init__(self, start: Start, send: Callable[[FromCourier], None]) -> None:
        self._start, self._send = start, send
        self._fetches: SimpleQueue[Fetch] = SimpleQueue()
        self._stores: SimpleQueue[Store | bytes] = SimpleQueue()
        #: Names whose fetch is not to begin any more.
        self._dropped: set[bytes] = set()

    def serve(self, bucket: Bucket) -> None:
        """Says that it is ready, and starts the threads, which end with the process."""
        self._bucket = bucket
        self._send(FromCourier())
        works = [self._list]
        works += [self._fetch] * self._start.fetches_at_once + [self._store] * self._start.stores_at_once
        for number, work in enumerate(works):
            threading.Thread(target=work, name=f"courier-{number}", daemon=True).start()

    def take(self, frame: ToCourier) -> None:
        """Takes requests in, also before there is a bucket; returns at once."""
        self._dropped.update(frame.drop)
        for fetch in frame.fetch:
            self._dropped.discard(fetch.name)
            self._fetches.put(fetch)
        for store in frame.store:
            self._stores.put(store)
        for name in frame.remove:
            self._stores.put(name)

    def _fetch(self) -> None:
        while True:
            fetch = self._fetches.get()
            if fetch.name in self._dropped:
                done = Done(fetch.name, "dropped")
            else:
                done = _done(fetch.name, partial(self._bucket.download, fetch.name, Path(fetch.path)))
            self._dropped.discard(fetch.name)
            self._send(FromCourier(fetched=[done]))

    def _store(self) -> None:
        while True:
            item = self._stores.get()
            if isinstance(item, bytes):
                self._send(FromCourier(removed=[_done(item, partial(self._bucket.remove, item))]))
            else:
                work = partial(self._bucket.upload, item.name, Path(item.path), replace=item.replace)
                self._send(FromCourier(stored=[_done(item.name, work)]))

    def _list(self) -> None:
        again = _LIST_AGAIN
        while True:
            try:
                pause = max(self._start.list_seconds, self._start.seconds_a_page * self._list_once())
                again = _LIST_AGAIN
            except Exception as e:  # noqa: BLE001 - a thread that ends lists nothing any more
                self._send(FromCourier(unlisted=_failed(b"", e)))
                pause, again = again, min(2 * again, _MOST_LIST_AGAIN)
            time.sleep(pause)

    def _list_once(self) -> int:
        """How many pages there are; each is sent once it is known whether it is the last."""
        count, held = 0, b""
        for names in self._bucket.pages():
            if count:
                self._send(FromCourier(pages=[Page(held, first=count == 1, last=False)]))
            held, count = b"".join(names), count + 1
        self._send(FromCourier(pages=[Page(held, first=count <= 1, last=True)]))
        return count


def _done(name: bytes, work: Callable[[], bool | None]) -> Done:
    """Does it. Whatever comes of it, there is an answer."""
    began = time.monotonic()
    try:
        written = work()
    except Exception as e:  # noqa: BLE001 - botocore's errors share no usable base, and somebody waits
        return _failed(name, e)
    return Done(name, began=began, ended=time.monotonic(), present=written is False)


def _failed(name: bytes, error: Exception) -> Done:
    refused = error if isinstance(error, Refused) else Refused("error", repr(error))
    return Done(name, refused.reason, refused.detail)
