"""The embedding of a step's tokens, some of which are known on the device alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._launch import check_contiguous, check_dtype, check_float, check_same_device, check_shape, use_triton


def embed_reference(input_ids: torch.Tensor, newest: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    known = torch.where(input_ids < 0, newest[(-1 - input_ids).clamp_(min=0)], input_ids)
    return torch.nn.functional.embedding(known, weight)


@triton.jit
def _embed_kernel(ids_ptr, newest_ptr, weight_ptr, out_ptr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """One program a token. The first of a step, it waits for all that came before."""
    token, column = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    found = tl.load(ids_ptr + token)
    if found < 0:
        found = tl.load(newest_ptr - 1 - found)
    live = column < COLUMNS
    row = tl.load(weight_ptr + found * COLUMNS + column, mask=live)
    tl.store(out_ptr + token * COLUMNS + column, row, mask=live)


def embed(input_ids: torch.Tensor, newest: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows of weight [V, H] for input_ids [T] (int64): [T, H]; below 0, -1 - r stands for the id newest[r] (int64).

    Nobody checks on the device that the ids lie below V and the rows within `newest`.
    """
    check_shape("input_ids", input_ids, None)
    check_dtype("input_ids", input_ids, torch.int64)
    check_shape("newest", newest, None)
    check_dtype("newest", newest, torch.int64)
    check_float("weight", weight)
    check_shape("weight", weight, None, None)
    check_same_device(input_ids=input_ids, newest=newest, weight=weight)
    for name, tensor in (("input_ids", input_ids), ("newest", newest), ("weight", weight)):
        check_contiguous(name, tensor)
    if not use_triton(weight):
        return embed_reference(input_ids, newest, weight)
    tokens, columns = input_ids.shape[0], weight.shape[1]
    out = weight.new_empty(tokens, columns)
    if tokens:
        width = triton.next_power_of_2(columns)
        _embed_kernel[(tokens,)](
            input_ids,
            newest,
            weight,
            out,
            COLUMNS=columns,
            WIDTH=width,
            num_warps=max(1, min(8, width // 256)),
        )
    return out
