"""What is stored first, what is let go when too much waits, and what the names of a bucket are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace_worker.courier_frames import Done, Page, Store, ToCourier
from millrace_worker.engine.bucket_names import BucketNames
from millrace_worker.engine.disk_index import DiskIndex
from millrace_worker.engine.fingerprint import Identity
from millrace_worker.engine.pause import Pause
from millrace_worker.engine.s3_uploads import Uploads

IDENTITY = Identity(
    weights="w", config="c", dtype="float32", kv_dtype="float32", layout_version=1, kernels="cpu 1", block_size=4
)
SIZE = 4096


def name(prompt: int, place: int) -> bytes:
    return hashlib.sha256(bytes([prompt, place])).digest()


class Case:
    """Uploads of an index in which every block is."""

    def __init__(self, directory: Path, most_waiting: int = 1000) -> None:
        self.index = DiskIndex(directory, IDENTITY, 10**9)
        self.names, self.pause = BucketNames(1000), Pause(60.0, 60.0)
        self.sent: list[ToCourier] = []
        self.uploads = Uploads(
            self.index, self.names, self.pause, self.sent.append, most_waiting=most_waiting, most_storing=3
        )

    def offer(self, prompt: int, length: int) -> None:
        for place in range(length):
            self.index.reserve(SIZE, ())
            self.index.add(name(prompt, place), SIZE)
        self.uploads.add((place, name(prompt, place)) for place in range(length))

    def asked(self) -> list[Store]:
        """What is asked for now."""
        self.sent.clear()
        self.uploads.go_on()
        return [store for frame in self.sent for store in frame.store]

    def stored(self, stores: list[Store], reason: str = "") -> None:
        for store in stores:
            self.uploads.stored(Done(store.name, reason))


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    case = Case(tmp_path)
    yield case
    case.index.close()


def test_beginnings_come_first_and_no_more_than_so_many_at_once(case: Case) -> None:
    case.offer(1, 3)
    case.offer(2, 2)
    first = case.asked()
    assert [store.name for store in first] == [name(1, 0), name(2, 0), name(1, 1)]
    assert case.asked() == []
    case.stored(first[:2])
    assert [store.name for store in case.asked()] == [name(2, 1), name(1, 2)]
    assert name(1, 0) in case.names


def test_what_is_furthest_from_the_beginnings_is_let_go(tmp_path: Path) -> None:
    case = Case(tmp_path, most_waiting=10)
    case.offer(1, 15)
    case.offer(2, 6)
    assert case.uploads.num_waiting == 10
    assert case.uploads.counts["unstored_blocks"] == 11
    left = []
    while asked := case.asked():
        left += [store.name for store in asked]
        case.stored(asked)
    case.index.close()
    assert sorted(left) == sorted(name(prompt, place) for prompt in (1, 2) for place in range(5))


def test_what_the_disk_has_no_more_is_passed_over(case: Case) -> None:
    case.offer(1, 2)
    case.index.remove(name(1, 0))
    assert [store.name for store in case.asked()] == [name(1, 1)]
    case.stored([Store(name(1, 1), "")], "dropped")
    assert case.asked() == []
    assert not case.uploads.waits(name(1, 1))


def test_what_failed_is_asked_for_again_after_the_pause(case: Case) -> None:
    case.offer(1, 1)
    case.pause.begin()
    assert case.asked() == []
    case.pause = case.uploads._pause = Pause(60.0, 60.0)
    case.stored(case.asked(), "denied")
    assert [store.name for store in case.asked()] == [name(1, 0)]


def test_what_a_courier_that_died_was_asked_for_is_asked_for_again(case: Case) -> None:
    case.offer(1, 3)
    case.uploads.remove(name(2, 0))
    before = case.asked()
    assert [frame.remove for frame in case.sent if frame.remove] == [[name(2, 0)]]
    case.uploads.courier_died()
    assert len(case.uploads) == 0
    assert case.asked() == before
    assert [frame.remove for frame in case.sent if frame.remove] == [[name(2, 0)]]


def test_a_spoilt_object_is_written_over_but_not_before_it_was_deleted(case: Case) -> None:
    case.names.take(Page(name(1, 0), first=True, last=True))
    case.uploads.remove(name(1, 0))
    assert name(1, 0) not in case.names
    case.asked()
    case.offer(1, 1)
    assert case.asked() == []
    case.uploads.removed(Done(name(1, 0), "denied"))
    (store,) = case.asked()
    assert store.replace
    # A listing does not bring it back before that.
    case.names.take(Page(name(1, 0), first=True, last=True))
    assert name(1, 0) not in case.names
    case.stored([store])
    case.names.take(Page(name(1, 0), first=True, last=True))
    assert name(1, 0) in case.names


def test_names_are_those_of_the_last_listing_and_what_was_stored_meanwhile() -> None:
    names = BucketNames(1000)
    names.take(Page(name(1, 0) + name(1, 1), first=True, last=True))
    names.stored(name(2, 0))
    names.take(Page(name(1, 0), first=True, last=False))
    assert all(one in names for one in (name(1, 0), name(1, 1), name(2, 0)))
    names.stored(name(3, 0))
    names.gone(name(1, 0))
    names.take(Page(name(4, 0), first=False, last=True))
    found = [one for one in (name(1, 0), name(1, 1), name(2, 0), name(3, 0), name(4, 0)) if one in names]
    assert found == [name(3, 0), name(4, 0)]


def test_names_are_bounded() -> None:
    names = BucketNames(3)
    names.take(Page(b"".join(name(1, place) for place in range(2)), first=True, last=False))
    names.take(Page(b"".join(name(2, place) for place in range(2)), first=False, last=True))
    assert len(names) == 2
