"""Elements past 2^31: a cache of 4 GiB of address space, of which only the pages in use become memory on a CPU."""

from __future__ import annotations

import pytest
import torch

from kernel_cases import DEVICE, assert_as_good, dense_attention
from millrace_kernels import paged_decode, paged_prefill, rotary_store

LAYERS, HEADS, BLOCK, DIM = 4, 8, 16, 128
BLOCKS = 2**31 // (LAYERS * 2 * HEADS * BLOCK * DIM) + 8


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.undo()  # filling this cache with NaN would commit all of it
    return torch.empty(BLOCKS, LAYERS, 2, HEADS, BLOCK, DIM, dtype=torch.float16, device=DEVICE)[:, -1]


def test_blocks_past_two_to_the_31st_element(layer: torch.Tensor) -> None:
    """Stored, decoded and prefilled through the last blocks of the cache, and one below zero if 32 bits wrapped."""
    pages = torch.tensor([BLOCKS - 1, 1, BLOCKS - 3], dtype=torch.int32, device=DEVICE)
    assert int(pages[0]) * layer.stride(0) > 2**31
    layer[pages.long()] = float("nan")
    context = 2 * BLOCK + 5
    k, v = (torch.randn(context, HEADS, DIM, device=DEVICE).half() for _ in range(2))
    token = torch.arange(context, device=DEVICE)
    cos_sin = torch.cat([torch.ones(1, DIM // 2, device=DEVICE), torch.zeros(1, DIM // 2, device=DEVICE)], dim=1)
    slots = pages.long()[token // BLOCK] * BLOCK + token % BLOCK
    rotary_store(k.clone(), k, v, layer, slots, cos_sin, torch.zeros_like(token))
    assert torch.equal(layer[BLOCKS - 1, 0, :, 0], k[0])
    assert torch.equal(layer[BLOCKS - 3, 1, :, 4], v[context - 1])

    q, scale = torch.randn(20, 4 * HEADS, DIM, device=DEVICE).half(), DIM**-0.5
    exact, plain = (dense_attention(*(x.to(t) for x in (q, k, v)), scale) for t in (torch.float64, torch.float16))
    lens = torch.tensor([context], dtype=torch.int32, device=DEVICE)
    cu = torch.tensor([0, 20], dtype=torch.int32, device=DEVICE)
    assert_as_good(paged_prefill(q, layer, pages[None], cu, lens, 20, scale), exact, plain)
    decoded = paged_decode(q[-1:], layer, pages[None], lens, scale)
    assert_as_good(decoded, exact[-1:], plain[-1:])
