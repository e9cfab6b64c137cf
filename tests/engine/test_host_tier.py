"""Host memory for blocks: it comes piece by piece, is never more than its cap, and heads are given up after tails."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest
import torch

from millrace_worker.engine.host_arena import HostArena
from millrace_worker.engine.host_tier import HostTier

BLOCK_BYTES = 4096


def name(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()


def tier(slots: int) -> HostTier:
    host = HostTier(HostArena(slots * BLOCK_BYTES + BLOCK_BYTES // 2, BLOCK_BYTES, piece_bytes=3 * BLOCK_BYTES))
    host.start()
    return host


def put(host: HostTier, *numbers: int) -> None:
    """Blocks of one prompt, in order."""
    slots = host.take(len(numbers))
    for slot, number in zip(slots, numbers, strict=True):
        host.slot(slot).fill_(number)
        host.put(slot, name(number))
    host.release(slots)


def present(host: HostTier, *numbers: int) -> list[int]:
    for number in numbers:
        for slot in host.hold([name(number)]):
            assert host.slot(slot).unique().tolist() == [number]
            host.release([slot])
    return [n for n in numbers if host.has(name(n))]


def gone_by(host: HostTier, numbers: list[int], *, new: int) -> list[int]:
    """In which order these are given up for new ones."""
    gone: list[int] = []
    for number in range(100, 100 + new):
        before = [n for n in numbers if host.has(name(n))]
        put(host, number)
        gone += [n for n in before if not host.has(name(n))]
    return gone


def test_the_cap_is_in_bytes_and_all_of_it_is_used() -> None:
    host = tier(7)
    put(host, *range(7))
    assert present(host, *range(7)) == list(range(7))
    assert (host.num_blocks, host.used_bytes) == (7, 7 * BLOCK_BYTES)
    put(host, *range(10, 15))
    assert host.num_blocks == 7
    assert len(host.take(100)) == 7
    assert host.take(1) == []


def test_tails_are_given_up_before_heads_and_what_was_used_last_goes_last() -> None:
    host = tier(6)
    put(host, 1, 2, 3)
    put(host, 11, 12, 13)
    host.touch([name(n) for n in (1, 2, 3, 4)])
    assert gone_by(host, [1, 2, 3, 11, 12, 13], new=6) == [13, 12, 11, 3, 2, 1]


def test_what_is_held_stays() -> None:
    host = tier(3)
    put(host, 1, 2, 3)
    held = host.hold([name(2), name(5), name(1)])
    assert [host.slot(slot)[0].item() for slot in held] == [2]
    assert gone_by(host, [1, 2, 3], new=4) == [3, 1]
    assert len(host.take(3)) == 2
    host.check_integrity([held, [slot for slot in range(3) if slot not in held]])


def test_what_is_aged_goes_first() -> None:
    host = tier(4)
    put(host, 1, 2)
    put(host, 3, 4)
    host.age([name(3), name(4)])
    assert gone_by(host, [1, 2, 3, 4], new=4) == [4, 3, 2, 1]


def test_protected_blocks_go_last_but_never_against_the_cap() -> None:
    host = tier(4)
    host.protect([name(n) for n in (1, 2)])
    put(host, 1, 2)
    host.touch([name(n) for n in (1, 2)])
    put(host, 3, 4)
    assert gone_by(host, [1, 2, 3, 4], new=20) == [4, 3]
    assert len(host.take(3)) == 3
    assert present(host, 1, 2) == [1]
    assert len(host.take(1)) == 1
    assert present(host, 1, 2) == []


def test_what_is_protected_and_in_use_stays_so() -> None:
    host = tier(3)
    host.protect([name(n) for n in (1, 2, 3)])
    put(host, 1, 2, 3)
    held = host.hold([name(1), name(2)])
    (slot,) = host.take(3)
    host.release(held)
    host.put(slot, name(9))
    host.release([slot])
    assert host.take(1) == [slot]
    assert present(host, 1, 2, 3, 9) == [1, 2]


def test_protection_ends() -> None:
    host = tier(3)
    put(host, 1)
    host.protect([name(1), name(2)])
    host.unprotect([name(2), name(3)])
    assert gone_by(host, [1], new=5) == []
    host.unprotect([name(1)])
    assert gone_by(host, [1], new=3) == [1]
    host.check_integrity([])


def test_memory_that_is_pinned_slowly_is_used_as_far_as_it_is_there() -> None:
    go_on = threading.Semaphore(1)

    def pin(memory: torch.Tensor) -> None:
        go_on.acquire()

    arena = HostArena(8 * BLOCK_BYTES, BLOCK_BYTES, pin=pin, piece_bytes=2 * BLOCK_BYTES)
    host = HostTier(arena)
    host.start()
    wait_for(arena, 2)
    host.grow()
    put(host, 1, 2)
    assert present(host, 1, 2) == [1, 2]
    go_on.release()
    wait_for(arena, 4)
    host.grow()
    put(host, 3, 4)
    assert present(host, 1, 2, 3, 4) == [1, 2, 3, 4]
    host.close()
    go_on.release()
    assert arena.num_slots <= 6


def test_where_no_more_memory_can_be_pinned_the_tier_is_as_large_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    pinned: list[int] = []

    def pin(memory: torch.Tensor) -> None:
        if len(pinned) == 2:
            raise RuntimeError("cudaHostRegister: error 2")
        pinned.append(memory.nbytes)

    arena = HostArena(8 * BLOCK_BYTES, BLOCK_BYTES, pin=pin, piece_bytes=2 * BLOCK_BYTES)
    arena.start()
    wait_for(arena, 4)
    end = time.monotonic() + 10
    while "cpu-cache-gb" not in (out := capsys.readouterr().out) and time.monotonic() < end:
        time.sleep(0.01)
    assert "error 2" in out
    assert arena.num_slots == 4


def test_much_memory_does_not_use_up_the_mappings_of_the_process() -> None:
    maps = Path("/proc/self/maps")
    before = len(maps.read_bytes().splitlines())
    arena = HostArena(40_000 * BLOCK_BYTES, BLOCK_BYTES, piece_bytes=BLOCK_BYTES)
    arena.start()
    assert arena.num_slots == 40_000
    # A process may have 65,530 unless the machine says otherwise; the next one then fails, whoever asks for it.
    assert len(maps.read_bytes().splitlines()) - before < 20_000
    arena.slot(39_999).fill_(1)


def wait_for(arena: HostArena, slots: int) -> None:
    end = time.monotonic() + 10
    while arena.num_slots < slots:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert arena.num_slots == slots
