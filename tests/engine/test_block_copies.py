"""What lies side by side is copied as one, whatever the order it is asked for in."""

from __future__ import annotations

import random

import pytest
import torch

from millrace_worker.engine.block_copies import BlockCopies
from millrace_worker.engine.host_arena import HostArena
from millrace_worker.engine.side_by_side import side_by_side

BYTES = 64


def parts(blocks: int = 12, slots: int = 12, per_piece: int = 5) -> tuple[torch.Tensor, BlockCopies, HostArena]:
    memory = torch.arange(blocks, dtype=torch.uint8)[:, None].repeat(1, BYTES)
    arena = HostArena(slots * BYTES, BYTES, piece_bytes=per_piece * BYTES)
    arena.start()
    return memory, BlockCopies(memory), arena


@pytest.mark.parametrize(
    ("blocks", "slots", "copies"),
    [
        ([3, 4, 5], [0, 1, 2], 1),
        ([5, 4, 3], [2, 1, 0], 1),
        ([3, 4, 5], [2, 1, 0], 3),
        ([3, 4, 6], [0, 1, 2], 2),
        ([3, 4, 5], [0, 1, 3], 2),
        # Slots 4 and 5 are in two pieces of memory.
        ([3, 4, 5], [3, 4, 5], 2),
        ([7], [9], 1),
        ([], [], 0),
    ],
)
def test_neighbours_in_both_are_one_copy(blocks: list[int], slots: list[int], copies: int) -> None:
    memory, block_copies, arena = parts()
    host = [arena.slot(slot) for slot in slots]
    assert len(block_copies._runs(blocks, host)) == copies
    block_copies.to_host(blocks, host)
    assert [buffer.unique().tolist() for buffer in host] == [[block] for block in blocks]
    memory.zero_()
    block_copies.to_device(blocks, host)
    assert [memory[block].unique().tolist() for block in blocks] == [[block] for block in blocks]


@pytest.mark.parametrize("seed", range(20))
def test_any_blocks_and_slots_hold_the_same_after_both_ways(seed: int) -> None:
    draw = random.Random(seed)
    memory, block_copies, arena = parts()
    count = draw.randrange(1, 13)
    blocks = draw.sample(range(12), count)
    slots = side_by_side(blocks, draw.sample(range(12), count))
    host = [arena.slot(slot) for slot in slots]
    block_copies.to_host(blocks, host)
    others = side_by_side(slots, draw.sample(range(12), count))
    memory.zero_()
    block_copies.to_device(others, host)
    assert [memory[block].unique().tolist() for block in others] == [[block] for block in blocks]


def test_neighbours_are_given_neighbours() -> None:
    assert side_by_side([9, 8, 7, 2], [20, 21, 30, 5]) == [30, 21, 20, 5]
    assert side_by_side([], []) == []


def test_new_buffers_are_side_by_side_by_eight() -> None:
    _, block_copies, _ = parts()
    buffers = block_copies.new_buffers(12)
    assert [buffer.shape for buffer in buffers] == [(BYTES,)] * 12
    assert len(block_copies._runs(list(range(12)), buffers)) == 2
