"""Kernels of a decoder over a paged KV cache: one op a file, each a torch reference, a Triton kernel, a wrapper."""

from __future__ import annotations

from ._prefill_parts import prefill_arrivals
from .apply_penalties import apply_penalties
from .count_tokens import count_tokens
from .decode_plan import DecodePlan, PlanShape, SharedReads, SharedRun, plan_decode
from .embed import embed
from .linear import linear, linear_added, linear_parts, norm_gated_linear, norm_linear
from .logprobs import logprobs
from .paged_decode import paged_decode
from .paged_prefill import paged_prefill
from .rms_norm import rms_norm, rms_norm_residual
from .rotary_store import rotary_store
from .sample import sample
from .silu_mul import silu_mul

__all__ = [
    "DecodePlan",
    "PlanShape",
    "SharedReads",
    "SharedRun",
    "apply_penalties",
    "count_tokens",
    "embed",
    "linear",
    "linear_added",
    "linear_parts",
    "logprobs",
    "norm_gated_linear",
    "norm_linear",
    "paged_decode",
    "paged_prefill",
    "plan_decode",
    "prefill_arrivals",
    "rms_norm",
    "rms_norm_residual",
    "rotary_store",
    "sample",
    "silu_mul",
]
