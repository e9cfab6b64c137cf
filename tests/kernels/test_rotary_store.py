from __future__ import annotations

import pytest
import torch

from kernel_cases import DEVICE, DTYPES, assert_as_good, by_mode
from millrace_kernels import rotary_store
from millrace_kernels.rotary_store import rotary_store_reference

#: tokens, query heads, KV heads, head_dim, block size
SHAPES = by_mode(
    gpu=[(1, 32, 8, 128, 16), (777, 32, 8, 128, 16), (5, 7, 1, 80, 32), (9, 16, 16, 64, 16), (3, 4, 2, 256, 64)],
    interpreter=[(3, 7, 1, 80, 16), (4, 8, 2, 64, 32)],
    reference=[(1, 32, 8, 128, 16), (5, 7, 1, 80, 32)],
)


class Case:
    def __init__(self, tokens: int, heads: int, kv_heads: int, head_dim: int, block: int, dtype: torch.dtype):
        self.fused = torch.randn(tokens, heads + 2 * kv_heads, head_dim, device=DEVICE).to(dtype)
        self.q, self.k, self.v = self.fused.split([heads, kv_heads, kv_heads], dim=1)
        pages = tokens // block + 3
        # The second of three layers: a view with gaps. Whatever nobody writes stays NaN.
        shape = (pages, 3, 2, kv_heads, block, head_dim)
        self.kv = torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)[:, 1]
        self.slots = torch.randperm(pages * block, device=DEVICE)[:tokens]
        self.slots[tokens // 2 :: 5] = -1
        self.positions = torch.randint(0, 500, (tokens,), device=DEVICE)
        frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2, device=DEVICE) / head_dim)
        angles = torch.arange(500, device=DEVICE)[:, None] * frequencies
        self.cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1).float()
        self.norms = [torch.randn(head_dim, device=DEVICE).to(dtype) for _ in range(2)]

    def reference(self, dtype: torch.dtype, norms: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and cache, computed by the reference in `dtype`."""
        q, k, v, kv = (x.to(dtype, copy=True) for x in (self.q, self.k, self.v, self.kv))
        wide = [norm.to(dtype) for norm in norms] or (None, None)
        rotary_store_reference(q, k, v, kv, self.slots, self.cos_sin.to(dtype), self.positions, *wide, 1e-6)
        return q, kv


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape: tuple[int, int, int, int, int], dtype: torch.dtype, normed: bool) -> None:
    case = Case(*shape, dtype)
    norms = case.norms if normed else []
    exact_q, exact_kv = case.reference(torch.float64, norms)
    plain_q, plain_kv = case.reference(dtype, norms)
    keys, values = case.k.clone(), case.v.clone()
    rotary_store(
        case.q, case.k, case.v, case.kv, case.slots, case.cos_sin, case.positions, *(norms or (None, None)), 1e-6
    )
    assert_as_good(case.q, exact_q, plain_q)
    written = ~plain_kv.isnan()
    assert torch.equal(~case.kv.isnan(), written)
    assert_as_good(case.kv[written], exact_kv[written], plain_kv[written])
    assert torch.equal(case.k, keys)
    assert torch.equal(case.v, values)


def hugging_face(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Give x * cos + rotate_half(x) * sin, with cosines and sines doubled over the head."""
    cos, sin = (part.repeat(1, 2)[:, None] for part in cos_sin[positions].chunk(2, dim=-1))
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], dim=-1) * sin.to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_turns_as_hugging_face_does_and_writes_its_slots_alone(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    case = Case(*shape, dtype)
    exact_q, exact_k = (hugging_face(x.double(), case.cos_sin.double(), case.positions) for x in (case.q, case.k))
    plain_q, plain_k = (hugging_face(x, case.cos_sin, case.positions) for x in (case.q, case.k))
    fused = case.fused.clone()
    rotary_store(case.q, case.k, case.v, case.kv, case.slots, case.cos_sin, case.positions)
    assert_as_good(case.q, exact_q, plain_q)
    heads = case.q.shape[1]
    assert torch.equal(case.fused[:, heads:], fused[:, heads:])
    block = case.kv.shape[3]
    empty = torch.ones(case.kv.shape[0], block, dtype=torch.bool)
    for token, slot in enumerate(case.slots.tolist()):
        if slot >= 0:
            keys, values = case.kv[slot // block, :, :, slot % block]
            assert_as_good(keys, exact_k[token], plain_k[token])
            assert torch.equal(values, case.v[token])
            empty[slot // block, slot % block] = False
    assert case.kv.transpose(0, 3).transpose(1, 3)[empty.T.to(DEVICE)].isnan().all()


def test_position_zero_turns_nothing() -> None:
    case = Case(3, 4, 2, 64, 16, torch.float32)
    before = case.q.clone()
    rotary_store(case.q, case.k, case.v, case.kv, case.slots, case.cos_sin, torch.zeros_like(case.positions))
    assert torch.equal(case.q, before)


def test_no_tokens_write_nothing() -> None:
    case = Case(2, 4, 2, 64, 16, torch.float32)
    empty = case.slots[:0]
    rotary_store(case.q[:0], case.k[:0], case.v[:0], case.kv, empty, case.cos_sin, empty)
    assert case.kv.isnan().all()


def test_wrong_arguments_are_named() -> None:
    case = Case(2, 4, 2, 64, 16, torch.float32)
    given = [case.q, case.k, case.v, case.kv, case.slots, case.cos_sin, case.positions]
    with pytest.raises(ValueError, match="q_norm and k_norm, or neither"):
        rotary_store(*given, case.norms[0])
    with pytest.raises(ValueError, match="k_norm has shape"):
        rotary_store(*given, case.norms[0], case.norms[1][:3])
    given[4] = case.slots.int()
    with pytest.raises(TypeError, match=r"slot_mapping is torch\.int32"):
        rotary_store(*given)
