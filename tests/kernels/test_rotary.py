from __future__ import annotations

import pytest
import torch

from kernel_cases import DEVICE, DTYPES, assert_as_good, by_mode
from millrace_kernels import rotary

SHAPES = by_mode(
    gpu=[(1, 32, 8, 128), (777, 32, 8, 128), (5, 7, 1, 80), (9, 16, 16, 64), (3, 4, 2, 256)],
    interpreter=[(3, 7, 1, 80), (4, 8, 2, 64)],
    reference=[(1, 32, 8, 128), (5, 7, 1, 80), (9, 16, 16, 64)],
)


def table(positions: int, head_dim: int) -> torch.Tensor:
    frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2, device=DEVICE) / head_dim)
    angles = torch.arange(positions, device=DEVICE)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def hugging_face(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Give x * cos + rotate_half(x) * sin, with cosines and sines doubled over the head."""
    cos, sin = (part.repeat(1, 2)[:, None] for part in cos_sin[positions].chunk(2, dim=-1))
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "head_dim"), SHAPES)
def test_turns_as_hugging_face_does(tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """In place in a fused projection, whose values are left alone."""
    cos_sin, positions = table(500, head_dim), torch.randint(0, 500, (tokens,), device=DEVICE)
    fused = torch.randn(tokens, heads + 2 * kv_heads, head_dim, device=DEVICE).to(dtype)
    before = fused.clone()
    q, k, v = fused.split([heads, kv_heads, kv_heads], dim=1)
    old_q, old_k, old_v = before.split([heads, kv_heads, kv_heads], dim=1)
    assert rotary(q, k, cos_sin, positions) is None
    for new, old in ((q, old_q), (k, old_k)):
        exact = hugging_face(old.double(), cos_sin.double(), positions)
        assert_as_good(new, exact, hugging_face(old, cos_sin, positions))
    assert torch.equal(v, old_v)


def test_position_zero_and_no_tokens_change_nothing() -> None:
    q, k = torch.randn(2, 4, 64, device=DEVICE), torch.randn(2, 2, 64, device=DEVICE)
    before = q.clone(), k.clone()
    rotary(q, k, table(4, 64), torch.zeros(2, dtype=torch.int64, device=DEVICE))
    rotary(q[:0], k[:0], table(4, 64), torch.zeros(0, dtype=torch.int64, device=DEVICE))
    assert torch.equal(q, before[0])
    assert torch.equal(k, before[1])


def test_wrong_arguments_are_named() -> None:
    q, k = torch.randn(2, 4, 64, device=DEVICE), torch.randn(2, 2, 64, device=DEVICE)
    positions = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    with pytest.raises(TypeError, match=r"positions is torch\.int32"):
        rotary(q, k, table(4, 64), positions.int())
    with pytest.raises(ValueError, match="cos_sin has shape"):
        rotary(q, k, table(4, 32), positions)
    with pytest.raises(TypeError, match=r"k is torch\.float16"):
        rotary(q, k.half(), table(4, 64), positions)
