"""What the S3 tier is asked for, and within which bounds."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class S3Limits:
    """Seconds, bytes and counts."""

    #: Records that are not there after this, or some times what they should take, are given up.
    fetch_seconds: float = 5.0
    #: For each request of the courier.
    request_seconds: float = 10.0
    #: A courier that was asked for something and says nothing for so long is killed.
    silent_seconds: float = 30.0
    #: Between two listings at least, and for each page of 1,000 records: requests cost money.
    list_seconds: float = 60.0
    seconds_a_page: float = 10.0
    #: The engine starts without knowing what is in the bucket when that was not listed within this.
    start_seconds: float = 5.0
    #: For fetches to end, and for what is still to be stored, at the end.
    drop_seconds: float = 0.5
    close_seconds: float = 2.0
    #: After a request was given up or refused, for so long there are no more of its kind; twice as long each further
    #: time, up to the second.
    pause: float = 10.0
    most_pause: float = 600.0
    #: Likewise, before a courier that died is started again.
    restart: float = 0.5
    most_restart: float = 60.0
    #: On their way to the disk.
    most_fetched_bytes: int = 512 * 2**20
    #: Records that wait to be stored, and those that the courier has been told of.
    most_waiting: int = 4096
    most_storing: int = 4
    #: Names of the bucket that are kept in memory, at about 100 bytes each.
    most_names: int = 2_000_000


class Fetching:
    """Records of one prompt on their way from the bucket to the disk, in order.

    The engine's thread and the tier's both change it.
    """

    def __init__(self, names: list[bytes], chain: list[bytes]) -> None:
        """`chain`: all hashes from the prompt's first block to the last of these."""
        self.names, self.chain = names, chain
        self.is_done = False
        #: Why fewer came than were asked for.
        self.reason: str | None = None
        self._lock = threading.Lock()
        self._places = {name: place for place, name in enumerate(names)}
        self._arrived = [False] * len(names)
        self._left, self._end = len(names), len(names)
        self._began, self._ended = float("inf"), 0.0

    @property
    def good(self) -> list[bytes]:
        """Those that are there, up to the first that is not."""
        arrived = self._arrived[: self._end]
        return self.names[: arrived.index(False)] if False in arrived else self.names[: self._end]

    @property
    def seconds(self) -> float:
        """From the first byte to the last."""
        return max(0.0, self._ended - self._began)

    @property
    def rest(self) -> list[bytes]:
        """What comes after the first that did not."""
        return self.names[self._end :]

    def settle(self, name: bytes, reason: str = "", began: float = 0.0, ended: float = 0.0) -> None:
        """This record is there, or will not be, for a `reason`."""
        with self._lock:
            place = self._places[name]
            self._left -= 1
            self._arrived[place] = not reason
            if not reason and ended:
                self._began, self._ended = min(self._began, began), max(self._ended, ended)
            if reason and place < self._end and not self.is_done:
                self._end, self.reason = place, reason
            self.is_done = self.is_done or self._left == 0

    def give_up(self, reason: str) -> None:
        """What is not there by now is not waited for any more."""
        with self._lock:
            if not self.is_done:
                self._end, self.reason, self.is_done = len(self.good), reason, True
