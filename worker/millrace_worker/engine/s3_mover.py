"""The thread that tells a courier what to move between a bucket and the disk cache's directory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue

import structlog

from millrace_worker.courier_frames import Done, FromCourier, Start

from .bucket_names import BucketNames
from .courier_link import CourierLink
from .disk_index import DiskIndex
from .pause import Pause
from .s3_downloads import Downloads
from .s3_requests import Fetching, S3Limits
from .s3_uploads import Uploads

log = structlog.get_logger()

#: Seconds between looks at what became of pauses and deadlines.
_LOOK = 0.25
#: Seconds within which a courier that was started takes requests.
_LOADING = 60.0


class Mover:
    """`run` is the thread; all else that does not begin with an underscore is for others, and returns at once."""

    def __init__(
        self, start: Start, index: DiskIndex, names: BucketNames, limits: S3Limits, *, disk_bytes: int
    ) -> None:
        """`disk_bytes`: what a record takes of the disk."""
        #: The bucket was listed once; or that failed once.
        self.listed, self.known = threading.Event(), threading.Event()
        #: The last listing was one.
        self._is_listed = False
        #: Something that was fetched is there, or will not be.
        self.progress = threading.Event()
        #: Requests that failed, by what they were and why: "store_denied".
        self.failures: Counter[str] = Counter()
        self._limits, self._names = limits, names
        self._place = {"bucket": start.bucket, "prefix": start.prefix}
        self._link = CourierLink(start, Pause(limits.restart, limits.most_restart))
        self._downloads = Downloads(index, names, start.record_bytes, disk_bytes, self._link.send)
        self._no_fetches = Pause(limits.pause, limits.most_pause)
        self._no_stores = Pause(limits.pause, limits.most_pause)
        self._uploads = Uploads(
            *(index, names, self._no_stores, self._link.send),
            most_waiting=limits.most_waiting,
            most_storing=limits.most_storing,
        )
        self._asked: SimpleQueue[Callable[[], None]] = SimpleQueue()
        #: Records that fetches were asked for, and of them those that `run` has begun with: each thread adds to one.
        self._num_asked = self._num_begun = 0
        self._fetches_end, self._fetches_ended = False, threading.Event()
        #: Until when there is time for what is to be stored; None: it is not the end yet.
        self._ends: float | None = None
        self._busy_since: float | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Blocks and bytes that were moved."""
        return {**self._downloads.counts, **self._uploads.counts}

    @property
    def is_open(self) -> bool:
        """Whether there is a courier, and the bucket was listed when that was last tried."""
        return self._is_listed and self._link.is_ready

    @property
    def courier_pid(self) -> int | None:
        return self._link.pid

    @property
    def may_fetch(self) -> bool:
        return self._link.is_ready and self._no_fetches.is_over and not self._fetches_end

    @property
    def num_fetching(self) -> int:
        """Records on their way, those included that the thread does not know of yet."""
        return self._num_asked - self._num_begun + len(self._downloads)

    @property
    def takes_offers(self) -> bool:
        return self._uploads.num_waiting < self._limits.most_waiting

    def is_storing(self, name: bytes) -> bool:
        """Whether it is, or will be."""
        return self._uploads.waits(name)

    def fetch(self, fetching: Fetching) -> None:
        self._num_asked += len(fetching.names)
        self._ask(partial(self._fetch, fetching))

    def give_up(self, fetching: Fetching) -> None:
        fetching.give_up("deadline")
        # From here on, and not only once the thread has come to it.
        self._ask(partial(self._late, self._no_fetches.begin()))
        self.drop(fetching)

    def drop(self, fetching: Fetching) -> None:
        self._ask(partial(self._downloads.drop, fetching.names))

    def store(self, records: list[tuple[int, bytes]]) -> None:
        """(place in its prompt, name) each."""
        self._ask(partial(self._uploads.add, records))

    def was_bad(self, name: bytes) -> None:
        """A record on the disk proved bad, and is deleted."""
        self._ask(partial(self._was_bad, name))

    def end_fetches(self, seconds: float) -> None:
        """Nothing is written to the disk from here on; what is being fetched has so long to be dropped."""
        self._fetches_end = True
        self._ask(self._downloads.drop_all)
        if not self._fetches_ended.wait(seconds):
            self._link.kill()

    def end(self, seconds: float) -> None:
        """`run` returns once all is stored, but no later than that."""
        self._ends = time.monotonic() + seconds
        self._link.wake()

    def kill(self) -> None:
        """Ends the courier, if `run` does not."""
        self._link.kill()

    def run(self) -> None:
        try:
            while not self._is_over():
                for frame in self._link.receive(_LOOK):
                    self._guarded(partial(self._take, frame))
                    self.progress.set()
                self._do_asked()
                if self._link.is_ready and self.listed.is_set():
                    self._uploads.go_on()
                if self._fetches_end and not self._downloads:
                    self._fetches_ended.set()
                self._watch()
        finally:
            self._link.close()
            self._downloads.courier_died()

    def _ask(self, request: Callable[[], None]) -> None:
        self._asked.put(request)
        self._link.wake()

    def _do_asked(self) -> None:
        while True:
            try:
                request = self._asked.get_nowait()
            except Empty:
                return
            self._guarded(request)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            log.exception("a request of the S3 cache was not done")

    def _is_over(self) -> bool:
        if self._ends is None:
            return False
        if time.monotonic() >= self._ends:
            return True
        stuck = not (self._no_stores.is_over and self.listed.is_set() and self._link.is_ready)
        return self._asked.empty() and (stuck or not (self._uploads.num_waiting or len(self._uploads)))

    def _watch(self) -> None:
        """Kills a courier that answers nothing."""
        now, ready = time.monotonic(), self._link.is_ready
        if self._link.pid is None or (ready and not self._downloads and not self._uploads):
            self._busy_since = None
            return
        self._busy_since = self._busy_since or now
        most = self._limits.silent_seconds if ready else _LOADING
        if now - max(self._busy_since, self._link.heard_at) > most:
            self.failures["courier_silent"] += 1
            self._busy_since = None
            self._link.kill()

    def _fetch(self, fetching: Fetching) -> None:
        try:
            self._downloads.begin(fetching, refused="" if self.may_fetch else "paused")
        finally:
            self._num_begun += len(fetching.names)
        if fetching.is_done:
            self.progress.set()

    def _was_bad(self, name: bytes) -> None:
        if self._downloads.was_bad(name):
            self._uploads.remove(name)

    def _take(self, frame: FromCourier | None) -> None:
        if frame is None:
            self.known.set()
            self.failures["courier_died"] += 1
            self._downloads.courier_died()
            self._uploads.courier_died()
            return
        for page in frame.pages:
            self._names.take(page)
            if page.last:
                if not self.listed.is_set():
                    log.info("S3 cache open", **self._place, blocks=len(self._names))
                self.listed.set()
                self._is_listed = True
                self.known.set()
                self._link.worked()
        if frame.unlisted is not None:
            self._is_listed = False
            self.known.set()
            self._failed("list", frame.unlisted)
        for done in frame.fetched:
            self._fetched(done)
        for done in frame.stored:
            self._uploads.stored(done)
            self._book("store", done, self._no_stores, harmless=("dropped",))
        for done in frame.removed:
            self._uploads.removed(done)
            if done.reason:
                self._failed("remove", done)

    def _fetched(self, done: Done) -> None:
        if done.reason == "gone":
            self._names.gone(done.name)
        elif done.reason == "length":
            self._uploads.remove(done.name)
        self._downloads.answered(done)
        self._book("fetch", done, self._no_fetches, harmless=("gone", "length", "dropped"))

    def _book(self, what: str, done: Done, pause: Pause, *, harmless: tuple[str, ...]) -> None:
        if not done.reason:
            pause.worked()
        elif done.reason not in harmless:
            self._failed(what, done, pause)

    def _late(self, pause: float | None) -> None:
        """Records that somebody waited for did not come; `pause` is None for all but the first of several."""
        self.failures["fetch_deadline"] += 1
        if pause is not None:
            self._warn("fetch", "deadline", "records did not come in time", pause=pause)

    def _failed(self, what: str, done: Done, pause: Pause | None = None) -> None:
        self.failures[f"{what}_{done.reason}"] += 1
        if pause is None:
            self._warn(what, done.reason, done.detail)
        elif (seconds := pause.begin()) is not None:
            self._warn(what, done.reason, done.detail, pause=seconds)

    def _warn(self, request: str, why: str, text: str, **more: float) -> None:
        log.warning("the bucket of the prefix cache failed", request=request, why=why, text=text, **more)
