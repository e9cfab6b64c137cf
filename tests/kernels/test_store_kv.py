from __future__ import annotations

import pytest
import torch

from kernel_cases import DEVICE, DTYPES, by_mode
from millrace_kernels import store_kv

SHAPES = by_mode(
    gpu=[(1, 8, 128, 16), (1000, 8, 128, 16), (333, 3, 80, 32), (7, 1, 256, 64)],
    interpreter=[(9, 3, 80, 16), (5, 1, 256, 32)],
    reference=[(1, 8, 128, 16), (33, 3, 80, 32)],
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "heads", "head_dim", "block_size"), SHAPES)
def test_writes_its_slots_and_no_other(
    tokens: int, heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    """Of strided views of k and v; every third row is padding; the cache is that of three layers."""
    blocks = 2 * tokens // block_size + 2
    cache = torch.full((blocks, 3, 2, heads, block_size, head_dim), -7.0, dtype=dtype, device=DEVICE)
    fused = torch.randn(tokens, 4 * heads, head_dim, device=DEVICE).to(dtype)
    k, v = fused[:, 2 * heads : 3 * heads], fused[:, 3 * heads :]
    slots = torch.randperm(blocks * block_size)[:tokens]
    slots[::3] = -1
    expected = cache.clone()
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot // block_size, 1, 0, :, slot % block_size] = k[row]
            expected[slot // block_size, 1, 1, :, slot % block_size] = v[row]
    store_kv(k, v, cache[:, 1], slots.to(DEVICE))
    assert torch.equal(cache, expected)


def test_padding_alone_writes_nothing() -> None:
    """What a padded row holds, NaN too, goes nowhere."""
    cache = torch.zeros(2, 1, 2, 1, 16, 64, device=DEVICE)
    rows = torch.full((3, 1, 64), float("nan"), device=DEVICE)
    store_kv(rows, rows, cache[:, 0], torch.full((3,), -1, device=DEVICE))
    store_kv(rows[:0], rows[:0], cache[:, 0], torch.zeros(0, dtype=torch.int64, device=DEVICE))
    assert torch.equal(cache, torch.zeros_like(cache))


def test_wrong_arguments_are_named() -> None:
    kv = torch.zeros(2, 2, 1, 16, 64, device=DEVICE)
    rows, slots = torch.zeros(3, 1, 64, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    with pytest.raises(TypeError, match=r"slot_mapping is torch\.int32"):
        store_kv(rows, rows, kv, slots.int())
    with pytest.raises(TypeError, match=r"v is torch\.float16"):
        store_kv(rows, rows.half(), kv, slots)
    with pytest.raises(ValueError, match="k has shape"):
        store_kv(rows[:2], rows, kv, slots)
    with pytest.raises(ValueError, match="contiguous"):
        store_kv(rows.expand(3, 64, 64).transpose(1, 2)[:, :1], rows, kv, slots)
