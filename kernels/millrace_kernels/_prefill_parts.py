"""How a prefill's few tiles of rows behind long contexts are cut into parts, so that every multiprocessor has one.

A program finds its part by itself: the lengths are on the device alone, and a captured step's are those of its replay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ._launch import multiprocessors

#: Sequences among which a program finds its own at one look.
_MAX_SEQS = 128
#: Fewest tiles of tokens that are worth a part: starting one, and handing over what it has, takes as long.
LEAST_TURNS = 4


@dataclass(frozen=True, slots=True)
class PrefillParts:
    """Where a launch's parts meet. `most` is how many there may be of a KV head, which is how many run at once."""

    most: int
    arrivals: torch.Tensor  # [at least most x KV heads x 2] int32, zeros before a launch and after it
    partial: torch.Tensor  # [most, KV heads, rows of a tile, D] float32
    lse: torch.Tensor  # [most, KV heads, rows of a tile] float32

    @classmethod
    def of(
        cls, arrivals: torch.Tensor | None, seqs: int, kv_heads: int, rows: int, head_dim: int
    ) -> PrefillParts | None:
        """None: the launch goes without."""
        if arrivals is None or seqs > _MAX_SEQS:
            return None
        most = multiprocessors(arrivals) // kv_heads
        if most < 2 or arrivals.numel() < 2 * kv_heads * most:
            return None
        partial = torch.empty(most, kv_heads, rows, head_dim, dtype=torch.float32, device=arrivals.device)
        lse = torch.empty(most, kv_heads, rows, dtype=torch.float32, device=arrivals.device)
        return cls(most, arrivals, partial, lse)


def prefill_arrivals(device: torch.device) -> torch.Tensor:
    """What `paged_prefill` counts parts in on this device: int32, zeros between launches. Each stream has its own."""
    programs = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return torch.zeros(2 * programs, dtype=torch.int32, device=device)


@gluon.jit
def _add(a, b):
    return a + b


@gluon.jit
def find_part(
    cu_ptr,
    context_ptr,
    num_seqs,
    program,
    most,
    GROUP: gl.constexpr,
    TILE_M: gl.constexpr,
    TILE_N: gl.constexpr,
    LEAST: gl.constexpr,
):
    """A program's (part among all, sequence, tile of its rows, part of that tile, longest part, tile among all).

    Below 0, there is no such part; a tile's last ones may have no tokens. The longest part is in tiles of tokens.
    """
    # Each warp has all sequences, so that no sum needs another warp.
    seq = gl.arange(0, 128, layout=gl.BlockedLayout([4], [32], [gl.num_warps()], [0]))
    there = seq < num_seqs
    rows = (gl.load(cu_ptr + seq + 1, mask=there, other=0) - gl.load(cu_ptr + seq, mask=there, other=0)) * GROUP
    tiles = (rows + TILE_M - 1) // TILE_M
    turns = (gl.load(context_ptr + seq, mask=there, other=0) + TILE_N - 1) // TILE_N
    # Parts of equal length, one for each program; where tiles round that up to too many, so long that they cannot.
    # Where there are too many tiles by themselves, each is one part.
    work, spare = gl.sum(tiles * turns, 0), most - gl.sum(tiles, 0)
    length = gl.maximum((work + most - 1) // most, LEAST)
    if gl.sum(tiles * ((turns + length - 1) // length), 0) > most:
        length = gl.where(spare > 0, (work + spare - 1) // gl.maximum(spare, 1), work + 1)
    length = gl.maximum(length, LEAST)
    parts = gl.maximum((turns + length - 1) // length, 1)
    ends = gl.associative_scan(tiles * parts, 0, _add)
    # The last tiles of a sequence see the most tokens; they start first.
    number = gl.sum(tiles * parts, 0) - 1 - program
    before = there & (ends <= number)
    found = gl.sum(before.to(gl.int32), 0)
    own_parts = gl.sum(gl.where(seq == found, parts, 0), 0)
    left = number - gl.sum(gl.where(before, tiles * parts, 0), 0)
    tile = left // gl.maximum(own_parts, 1)
    first_tile = gl.sum(gl.where(before, tiles, 0), 0)
    return number, found, tile, left - tile * own_parts, length, first_tile + tile


@gluon.jit
def merge_parts(sums, top, total, parts, half, row, SUMS: gl.constexpr, HEAD_DIM: gl.constexpr, STRIDE: gl.constexpr):
    """(whether this part has the results of all, sums, total): the last one of half a tile to arrive has."""
    part, num_parts, arrival_ptr, partial_ptr, lse_ptr = parts
    arrival_ptr += half
    dim = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, SUMS))
    own = part * STRIDE + row
    gl.store(partial_ptr + own[:, None] * HEAD_DIM + dim[None, :], sums / total[:, None])
    gl.store(lse_ptr + own, top + gl.log2(total))
    # All threads' results are out before one of them says so.
    gl.thread_barrier()
    last = gl.atomic_add(arrival_ptr, 1, sem="acq_rel", scope="gpu") == num_parts - 1
    if last:
        top, total, sums = gl.full_like(top, float("-inf")), gl.zeros_like(total), gl.zeros_like(sums)
        # In their order, whoever was last: the same numbers each time.
        for number in range(num_parts):
            place = number * STRIDE + row
            # Not through L1, which may hold what an earlier layer left there.
            lse = gl.load(lse_ptr + place, cache_modifier=".cg")
            partial = gl.load(partial_ptr + place[:, None] * HEAD_DIM + dim[None, :], cache_modifier=".cg")
            new_top = gl.maximum(top, lse)
            decay, weight = gl.exp2(top - new_top), gl.exp2(lse - new_top)
            sums = sums * decay[:, None] + partial * weight[:, None]
            total = total * decay + weight
            top = new_top
        gl.store(arrival_ptr, 0)
    return last, sums, total
