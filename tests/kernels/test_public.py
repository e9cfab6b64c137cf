from __future__ import annotations

import importlib

import millrace_kernels

#: What attention goes by; no ops.
PLANS = {"DecodePlan", "PlanShape", "SharedReads", "SharedRun", "plan_decode", "prefill_arrivals"}
SAME_REFERENCE = {"linear_added": "linear", "linear_parts": "linear"}


def test_names_are_sorted_and_exist() -> None:
    assert millrace_kernels.__all__ == sorted(millrace_kernels.__all__)
    assert all(callable(getattr(millrace_kernels, name)) for name in millrace_kernels.__all__)


def test_every_op_has_its_reference_beside_it() -> None:
    for name in millrace_kernels.__all__:
        if name in PLANS:
            continue
        module = importlib.import_module(getattr(millrace_kernels, name).__module__)
        assert callable(getattr(module, f"{SAME_REFERENCE.get(name, name)}_reference"))
