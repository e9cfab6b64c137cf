"""Device functions that the attention kernels share: addressing of pages, and one step of the running softmax."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(
    kv_ptr,
    table_ptr,
    token,
    live,
    kv_block,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    MASKED: tl.constexpr,
):
    """(keys, values), each [tokens, DIM_PAD], of one head: kv_ptr is at its keys in block 0.

    With MASKED, tokens that are not live are zeros. Values must be: a weight of zero does not silence NaN.
    """
    dim = tl.arange(0, DIM_PAD)
    page = tl.load(table_ptr + token // BLOCK_SIZE, mask=live, other=0).to(tl.int64)
    place = (page * kv_block + token % BLOCK_SIZE * HEAD_DIM)[:, None] + dim[None, :]
    v_ptr = kv_ptr + KV_HEADS * BLOCK_SIZE * HEAD_DIM
    if MASKED:
        wanted = live[:, None] & (dim < HEAD_DIM)[None, :]
        k, v = tl.load(kv_ptr + place, mask=wanted, other=0.0), tl.load(v_ptr + place, mask=wanted, other=0.0)
    elif HEAD_DIM != DIM_PAD:
        wanted = (dim < HEAD_DIM)[None, :]
        k, v = tl.load(kv_ptr + place, mask=wanted, other=0.0), tl.load(v_ptr + place, mask=wanted, other=0.0)
    else:
        k, v = tl.load(kv_ptr + place), tl.load(v_ptr + place)
    return k, v


@triton.jit
def attend(q, k, v, visible, acc, top, total, scale_log2, MASKED: tl.constexpr):
    """Add one tile of tokens to the running softmax of the rows of q.

    top is the largest score so far (in powers of two), total the sum of weights, acc the weighted sum of values. With
    MASKED, `visible` says which scores count; a row must see a token in its first tile.
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    decay = tl.exp2(top - new_top)
    weights = tl.exp2(scores - new_top[:, None])
    total = total * decay + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return acc, new_top, total
