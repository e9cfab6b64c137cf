"""The engine's end of the socketpair."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from millrace_worker.engine.link import FrontLink
from millrace_worker.frames import ToEngine, pack


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, FrontLink]]:
    front, engine = socket.socketpair()
    with front, engine:
        yield front, FrontLink(engine)


def test_frames_split_over_reads_arrive_whole_and_in_order(ends: tuple[socket.socket, FrontLink]) -> None:
    front, link = ends
    data = b"".join(pack(ToEngine(abort=[i])) for i in range(3))
    front.sendall(data[:7])
    assert list(link.receive(timeout=0)) == []
    front.sendall(data[7:])
    assert [f.abort for f in link.receive(timeout=0) if f] == [[0], [1], [2]]


def test_does_not_wait_while_there_is_work(ends: tuple[socket.socket, FrontLink]) -> None:
    _front, link = ends
    assert list(link.receive(timeout=0)) == []


def test_waits_for_no_longer_than_it_is_told(ends: tuple[socket.socket, FrontLink]) -> None:
    front, link = ends
    assert list(link.receive(timeout=0.01)) == []
    front.sendall(pack(ToEngine(abort=[4])))
    assert [f.abort for f in link.receive(timeout=60) if f] == [[4]]


def test_the_end_of_the_front_ends_the_stream(ends: tuple[socket.socket, FrontLink]) -> None:
    front, link = ends
    front.sendall(pack(ToEngine(abort=[4])))
    front.close()
    frames = list(link.receive(timeout=None))
    assert [f.abort if f else None for f in frames] in ([[4], None], [[4]])
    assert list(link.receive(timeout=None)) == [None]
    link.send(pack(ToEngine()))
    assert link.receive_body() is None
