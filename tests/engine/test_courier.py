"""The courier's process, spoken to as the engine's half does, beside a real S3 server."""

from __future__ import annotations

import hashlib
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest

from faulty_s3 import FaultyS3
from millrace_worker.courier import bucket
from millrace_worker.courier.refused import Refused
from millrace_worker.courier_frames import NAME_BYTES, Done, Fetch, FromCourier, Page, Start, Store, ToCourier
from millrace_worker.engine.courier_link import CourierLink
from millrace_worker.engine.pause import Pause
from millrace_worker.frames import pack
from s3_parts import BUCKET, Objects
from servers import S3Server

SIZE = 1000


def name(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


class Asked:
    """A courier, and all that it has said."""

    def __init__(self, url: str, prefix: str, **settings: float) -> None:
        values = {"request_seconds": 5.0, "list_seconds": 0.2, "seconds_a_page": 0.0, **settings}
        self.link = CourierLink(Start(BUCKET, prefix, url, SIZE, **values), Pause(0.1, 1.0))  # type: ignore[arg-type]
        self.frames: list[FromCourier] = []
        self.until(lambda: self.link.is_ready)

    def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.frames
            self.frames += [frame for frame in self.link.receive(0.05) if frame is not None]

    def done(self, request: ToCourier) -> list[Done]:
        """The answers to these."""
        count, self.frames = len(request.fetch) + len(request.store) + len(request.remove), []
        self.link.send(request)
        self.until(lambda: len(self._done()) == count)
        return self._done()

    def _done(self) -> list[Done]:
        return [done for frame in self.frames for done in (*frame.fetched, *frame.stored, *frame.removed)]

    def listing(self) -> list[Page]:
        """The pages of the next whole listing."""
        self.frames = []
        self.until(self._whole)
        return self._whole()

    def _whole(self) -> list[Page]:
        pages = [page for frame in self.frames for page in frame.pages]
        first = next((i for i, page in enumerate(pages) if page.first), len(pages))
        last = next((i for i, page in enumerate(pages) if page.last and i >= first), None)
        return [] if last is None else pages[first : last + 1]


def names_of(pages: list[Page]) -> set[bytes]:
    data = b"".join(page.names for page in pages)
    return {data[start : start + NAME_BYTES] for start in range(0, len(data), NAME_BYTES)}


@pytest.fixture
def objects(s3_env: S3Server) -> Objects:
    return Objects(s3_env.url, "courier/" + secrets.token_hex(4))


@pytest.fixture
def courier(s3_env: S3Server, objects: Objects) -> Iterator[Asked]:
    asked = Asked(s3_env.url, objects.prefix + "/")
    yield asked
    asked.link.close()


def test_there_and_back(courier: Asked, objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "a.kv").write_bytes(b"a" * SIZE)
    key = f"{objects.prefix}/{name(1).hex()}.kv"
    (stored,) = courier.done(ToCourier(store=[Store(name(1), str(tmp_path / "a.kv"))]))
    assert (stored.name, stored.reason, stored.present) == (name(1), "", False)
    assert objects.read(key) == b"a" * SIZE
    # It is left as it is, unless it is no good.
    (tmp_path / "a.kv").write_bytes(b"b" * SIZE)
    (stored,) = courier.done(ToCourier(store=[Store(name(1), str(tmp_path / "a.kv"))]))
    assert (stored.present, objects.read(key)) == (True, b"a" * SIZE)
    (stored,) = courier.done(ToCourier(store=[Store(name(1), str(tmp_path / "a.kv"), replace=True)]))
    assert (stored.present, objects.read(key)) == (False, b"b" * SIZE)
    target = tmp_path / "x" / "y" / "b.kv"
    (fetched,) = courier.done(ToCourier(fetch=[Fetch(name(1), str(target))]))
    assert fetched.reason == ""
    assert 0 < fetched.began <= fetched.ended <= time.monotonic()
    assert target.read_bytes() == b"b" * SIZE
    (removed,) = courier.done(ToCourier(remove=[name(1)]))
    assert (removed.reason, objects.listed()) == ("", [])
    (fetched,) = courier.done(ToCourier(fetch=[Fetch(name(1), str(target))]))
    assert fetched.reason == "gone"


def test_what_is_shorter_or_longer_is_written_over_and_not_fetched(
    courier: Asked, objects: Objects, tmp_path: Path
) -> None:
    (tmp_path / "a.kv").write_bytes(b"a" * SIZE)
    for number, length in enumerate((SIZE - 1, SIZE + 1, 0)):
        key = f"{objects.prefix}/{name(number).hex()}.kv"
        objects.write(key, bytes(length))
        (fetched,) = courier.done(ToCourier(fetch=[Fetch(name(number), str(tmp_path / "b.kv"))]))
        assert fetched.reason == "length"
        assert not (tmp_path / "b.kv").exists()
        courier.done(ToCourier(store=[Store(name(number), str(tmp_path / "a.kv"))]))
        assert objects.read(key) == b"a" * SIZE


@pytest.mark.parametrize("length", [None, SIZE - 1], ids=["gone", "short"])
def test_a_file_that_is_no_record_is_not_stored(
    courier: Asked, objects: Objects, tmp_path: Path, length: int | None
) -> None:
    if length is not None:
        (tmp_path / "a.kv").write_bytes(bytes(length))
    (stored,) = courier.done(ToCourier(store=[Store(name(1), str(tmp_path / "a.kv"))]))
    assert stored.reason == ("dropped" if length is None else "disk_error")
    assert objects.listed() == []


def test_a_listing_has_all_records_in_pages_and_nothing_else(s3_env: S3Server, tmp_path: Path) -> None:
    place = tmp_path / "root" / BUCKET / "kv"
    place.mkdir(parents=True)
    for number in range(2500):
        (place / f"{name(number).hex()}.kv").write_bytes(bytes(SIZE))
    for other, length in (("identity.json", SIZE), (f"{name(1).hex()}.kv.old", SIZE), (f"{name(9999).hex()}.kv", 7)):
        (place / other).write_bytes(bytes(length))
    server = S3Server(tmp_path / "root")
    server.start()
    courier = Asked(server.url, "kv/")
    pages = courier.listing()
    assert names_of(pages) == {name(number) for number in range(2500)}
    assert [(page.first, page.last) for page in pages] == [(True, False), (False, False), (False, True)]
    courier.link.close()
    server.stop()


def test_listings_follow_each_other(courier: Asked, objects: Objects) -> None:
    assert names_of(courier.listing()) == set()
    objects.write(f"{objects.prefix}/{name(1).hex()}.kv", bytes(SIZE))
    courier.until(lambda: names_of(courier.listing()) == {name(1)})


def test_each_request_has_a_deadline(s3_env: S3Server, objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "a.kv").write_bytes(b"a" * SIZE)
    objects.write(f"{objects.prefix}/{name(1).hex()}.kv", bytes(SIZE))
    with FaultyS3(s3_env.port) as proxy:
        courier = Asked(proxy.url, objects.prefix + "/", request_seconds=1.0)
        for method in ("GET", "PUT", "DELETE"):
            proxy.fail(method, ".kv", "hold")
        answers = courier.done(
            ToCourier(
                fetch=[Fetch(name(1), str(tmp_path / "b.kv"))],
                store=[Store(name(2), str(tmp_path / "a.kv"))],
                remove=[name(3)],
            )
        )
        assert [done.reason for done in answers] == ["deadline"] * 3
        courier.link.close()


def test_a_record_whose_last_bytes_come_too_late_is_not_put_in_its_place(
    s3_env: S3Server, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.write(f"{objects.prefix}/{name(1).hex()}.kv", bytes(SIZE))
    start = Start(BUCKET, objects.prefix + "/", s3_env.url, SIZE, 5.0, 60.0, 0.0)
    now = chain([0.0], repeat(10.0))
    monkeypatch.setattr(bucket, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with pytest.raises(Refused, match="deadline"):
        bucket.Bucket(start).download(name(1), tmp_path / "a.kv")
    assert list(tmp_path.iterdir()) == []


def test_fetches_that_nobody_waits_for_are_not_begun(s3_env: S3Server, objects: Objects, tmp_path: Path) -> None:
    names = [name(number) for number in range(40)]
    for one in names:
        objects.write(f"{objects.prefix}/{one.hex()}.kv", bytes(SIZE))
    with FaultyS3(s3_env.port) as proxy:
        courier = Asked(proxy.url, objects.prefix + "/")
        proxy.fail("GET", ".kv", "hold")
        courier.frames = []
        courier.link.send(ToCourier(fetch=[Fetch(one, str(tmp_path / one.hex())) for one in names]))
        courier.until(lambda: sum(".kv" in path for _, path in proxy.requests) == 8)
        courier.link.send(ToCourier(drop=names, remove=[name(99)]))
        courier.until(lambda: any(frame.removed for frame in courier.frames))
        proxy.heal()
        courier.until(lambda: sum(len(frame.fetched) for frame in courier.frames) == len(names))
        reasons = [done.reason for frame in courier.frames for done in frame.fetched]
        # Those that had begun come, as many as there are threads.
        assert (reasons.count(""), reasons.count("dropped")) == (8, 32)
        courier.link.close()


def test_it_ends_with_the_other_end_of_its_socket(s3_env: S3Server, tmp_path: Path) -> None:
    """Whatever it is doing: here a request hangs, and before that it is still loading."""
    with FaultyS3(s3_env.port) as proxy:
        proxy.fail("GET", "", "hold")
        for until in (lambda: True, lambda: bool(proxy.requests)):
            ours, theirs = socket.socketpair()
            command = [sys.executable, "-m", "millrace_worker.courier", "--fd", str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
            theirs.close()
            ours.sendall(pack(Start(BUCKET, "", proxy.url, SIZE, 60.0, 60.0, 0.0)))
            while not until():
                time.sleep(0.01)
            ours.close()
            assert process.wait(20) == 0


def test_one_that_cannot_work_says_why_and_is_not_started_again() -> None:
    link = CourierLink(Start(BUCKET, "", "no address", SIZE, 1.0, 1.0, 0.0), Pause(0.01, 0.01))
    frames: list[FromCourier | None] = []
    end = time.monotonic() + 30
    while None not in frames and time.monotonic() < end:
        frames += link.receive(0.1)
    assert "no address" in link.hopeless
    assert list(link.receive(0.1)) == []
    assert link.pid is None
    link.close()
