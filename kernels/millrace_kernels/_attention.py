"""Device functions that the attention kernels share: addressing of pages, and one step of the running softmax."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def page_offsets(table_ptr, token, live, kv_block, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Where each token's row begins within a head of the layer's view, in elements (int64)."""
    page = tl.load(table_ptr + token // BLOCK_SIZE, mask=live, other=0).to(tl.int64)
    return page * kv_block + token % BLOCK_SIZE * HEAD_DIM


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
