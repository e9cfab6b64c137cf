"""The rotary part of config.json, in the old spelling (rope_theta, rope_scaling) and the new (rope_parameters)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from millrace_worker.errors import ModelError
from millrace_worker.fields import Fields

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
#: transformers' default of every family here.
DEFAULT_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding with nothing left open; fields of other types keep their neutral defaults."""

    type: str = "default"
    theta: float = DEFAULT_THETA
    #: Of linear, llama3 and yarn: how many times the context was stretched.
    factor: float = 1.0
    #: Of llama3 and yarn: the context before stretching, in tokens.
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    #: Whether yarn rounds the bounds of its ramp.
    truncate: bool = True
    #: Factor of cos and sin.
    attention_factor: float = 1.0


def read_rope(fields: Fields, where: str, max_position_embeddings: int) -> RopeConfig:
    """The rotary configuration. rope_scaling wins over rope_parameters, and a theta in either over rope_theta.

    Raises ModelError on a type that is not supported or a field that is missing or ill-typed.
    """
    raw = _one_for_all_layers(fields.raw("rope_scaling") or fields.raw("rope_parameters") or {}, where)
    if raw.get("mrope_section") or raw.get("type") == "mrope":
        raise ModelError(f"{where}: multimodal rotary embedding (mrope) is not supported")
    rope = Fields(raw, f"{where}, rope parameters")
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise ModelError(f"{where}: rope type {kind!r} is not supported; Millrace has {', '.join(ROPE_TYPES)}")
    for holder in (fields, rope):
        if holder.number("partial_rotary_factor", 1.0) != 1.0:
            raise holder.error("partial_rotary_factor", "must be 1: rotary embedding of a part of the head is not run")
    theta = rope.number("rope_theta", fields.number("rope_theta", DEFAULT_THETA))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(type=kind, theta=theta, factor=rope.number("factor"))
    original = fields.size(
        "original_max_position_embeddings", rope.size("original_max_position_embeddings", max_position_embeddings)
    )
    if kind == "llama3":
        return RopeConfig(
            type=kind,
            theta=theta,
            factor=rope.number("factor"),
            original_max_position_embeddings=original,
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
        )
    factor = rope.number("factor", max_position_embeddings / original)
    return RopeConfig(
        type=kind,
        theta=theta,
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        attention_factor=rope.number("attention_factor", _yarn_attention_factor(raw, factor)),
    )


def rope_context(rope: RopeConfig, max_position_embeddings: int) -> int:
    """Most positions that the embedding is meant for, in vLLM's reading of the two numbers.

    Checkpoints with linear or yarn scaling write the length before stretching into max_position_embeddings as often
    as that after it, and llama3 ones that after it.
    """
    if rope.type == "linear":
        return int(max_position_embeddings * rope.factor)
    if rope.type == "yarn":
        return int(rope.original_max_position_embeddings * rope.factor)
    return max_position_embeddings


def _one_for_all_layers(raw: Any, where: str) -> dict[str, Any]:
    """The parameters, also where they are nested under layer types that all have the same ones."""
    if not isinstance(raw, dict):
        raise ModelError(f"{where}: rope parameters must be an object, not {raw!r}")
    nested = [v for k, v in raw.items() if k.endswith("_attention") and isinstance(v, dict)]
    if not nested:
        return raw
    if any(v != nested[0] for v in nested):
        raise ModelError(f"{where}: rope parameters that differ between layer types are not supported")
    return nested[0]


def _yarn_attention_factor(raw: dict[str, Any], factor: float) -> float:
    def magnitude(scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, mscale_all_dim = raw.get("mscale"), raw.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude()
