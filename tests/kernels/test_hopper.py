"""Which work the kernels for Hopper take; what they compute is tested where the portable ones are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from millrace_kernels import DecodePlan, PlanShape, SharedRun, _hopper_attention, plan_decode
from millrace_kernels._hopper_prefill import takes_prefill
from millrace_kernels._hopper_shared_run import takes_shared_runs


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hopper_attention, "enabled", True)
    monkeypatch.setattr(_hopper_attention, "is_hopper", lambda tensor: True)


Q = torch.zeros(40, 8, 128, dtype=torch.bfloat16)


def cache(block: int) -> torch.Tensor:
    return torch.zeros(1, 2, 2, block, 128, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("block", "taken"), [(8, False), (16, True), (64, True), (128, False), (96, False), (48, False)]
)
def test_every_part_of_a_run_that_is_taken_begins_with_a_block(block: int, *, taken: bool) -> None:
    shape = PlanShape(len(Q), 2, 4, 132, shared=True)
    run = SharedRun(np.arange(len(Q)), 0, 9 * 128)
    arrays = plan_decode(np.full(len(Q), 1200), np.arange(len(Q)), shape, [run])
    plan = DecodePlan.of(shape, {name: torch.from_numpy(array) for name, array in arrays.items()})
    assert plan.shared is not None
    begins = plan.shared[:, 3]
    assert (begins % 128 != 0).any()
    assert takes_shared_runs(Q, cache(block), plan) == taken
    assert not taken or (begins % block == 0).all()


@pytest.mark.parametrize(("block", "taken"), [(8, False), (16, True), (128, True), (256, False), (48, False)])
def test_a_prefill_that_is_taken_has_whole_blocks_in_a_tile(block: int, *, taken: bool) -> None:
    assert takes_prefill(Q, cache(block), 40) == taken
    assert not takes_prefill(Q, cache(block), 16)


def test_blocks_begin_at_multiples_of_16_bytes() -> None:
    odd = torch.zeros(1, 2 * 2 * 16 * 128 + 4, dtype=torch.bfloat16)
    assert not takes_prefill(Q, odd.as_strided((1, 2, 2, 16, 128), (odd.shape[1], 4096, 2048, 128, 1)), 40)
