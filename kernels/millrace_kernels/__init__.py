"""Kernels of a decoder over a paged KV cache: one op a file, each a torch reference, a Triton kernel, a wrapper."""

from __future__ import annotations

from .decode_plan import DecodePlan, PlanShape, SharedRun, plan_decode
from .linear import linear, linear_parts, norm_gated_linear, norm_linear
from .paged_decode import paged_decode
from .paged_prefill import paged_prefill
from .rms_norm import rms_norm, rms_norm_residual
from .rotary_store import rotary_store
from .sample import sample
from .silu_mul import silu_mul

__all__ = [
    "DecodePlan",
    "PlanShape",
    "SharedRun",
    "linear",
    "linear_parts",
    "norm_gated_linear",
    "norm_linear",
    "paged_decode",
    "paged_prefill",
    "plan_decode",
    "rms_norm",
    "rms_norm_residual",
    "rotary_store",
    "sample",
    "silu_mul",
]
