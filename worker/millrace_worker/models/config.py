"""A model's config.json, read once into a value with nothing left open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace_worker.errors import ModelError
from millrace_worker.fields import Fields, read_json_object

from .families import FAMILIES, FAMILIES_BY_TYPE, Family
from .rope_config import RopeConfig, read_rope, rope_context

#: Dtypes that weights may be stored in and run in.
DTYPES = ("float32", "bfloat16", "float16")

#: Fields that, when set to something, change what attention or the weights mean, and why we stop at them.
_NOT_RUN = {
    "quantization_config": "quantised checkpoints are not supported; use one in bfloat16, float16 or float32",
    "compression_config": "quantised checkpoints are not supported; use one in bfloat16, float16 or float32",
    "attention_chunk_size": "chunked attention is not supported; every layer attends to the whole context",
    "attn_logit_softcapping": "soft-capped attention is not supported",
    "final_logit_softcapping": "soft-capped logits are not supported",
    "dual_chunk_attention_config": "dual chunk attention is not supported; remove the field to run full attention",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and numbers of a model. Sizes are counts; `dtype` is that of the checkpoint."""

    family: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    #: As config.json has it; the usable length is `max_context`.
    max_position_embeddings: int
    #: Most tokens of prompt and answer: the rotary embedding's reach, and no more than the sliding window where there
    #: is one, because attention here is always over the whole context. Up to the window the two are the same.
    max_context: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: str
    #: From config.json alone; empty where it names none.
    eos_token_ids: tuple[int, ...]
    #: None where no layer has one.
    sliding_window: int | None


def load_config(path: str | Path) -> ModelConfig:
    """The configuration in the directory `path`.

    Raises ModelError when config.json is missing, broken, or of a model that we do not run.
    """
    file = Path(path) / "config.json"
    return parse_config(read_json_object(file), str(file))


def parse_config(raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The configuration in the object `raw`, whose errors name `where`."""
    family = _family(raw, where)
    fields = Fields(raw, where)
    for name, why in _NOT_RUN.items():
        if raw.get(name):
            raise ModelError(f"{where}: {name}: {why}")
    if raw.get("hidden_act", "silu") != "silu":
        raise fields.error("hidden_act", "must be 'silu'")
    num_layers, num_heads = fields.size("num_hidden_layers"), fields.size("num_attention_heads")
    hidden_size = fields.size("hidden_size")
    num_kv_heads = _num_kv_heads(fields, family, num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"must divide num_attention_heads = {num_heads}")
    head_dim = fields.size("head_dim", family.head_dim or hidden_size // num_heads)
    if head_dim % 2:
        raise ModelError(f"{where}: head_dim must be even, not {head_dim}")
    max_positions = fields.size("max_position_embeddings", family.max_position_embeddings)
    rope = read_rope(fields, where, max_positions)
    window = _sliding_window(fields, family, num_layers)
    reach = rope_context(rope, max_positions)
    attention_bias = family.attention_bias == "config" and fields.flag("attention_bias", False)
    return ModelConfig(
        family=family.name,
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=max_positions,
        max_context=reach if window is None else min(reach, window),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=rope,
        tie_word_embeddings=fields.flag("tie_word_embeddings", family.tie_word_embeddings),
        qkv_bias=family.attention_bias == "qkv" or attention_bias,
        o_bias=attention_bias,
        mlp_bias=family.mlp_bias and fields.flag("mlp_bias", False),
        qk_norm=family.qk_norm,
        dtype=_dtype(fields),
        eos_token_ids=fields.token_ids("eos_token_id"),
        sliding_window=window,
    )


def _family(raw: Mapping[str, Any], where: str) -> Family:
    supported = "Millrace runs " + ", ".join(FAMILIES)
    architectures = raw.get("architectures")
    if architectures:
        for name in architectures:
            if name in FAMILIES:
                return FAMILIES[name]
        raise ModelError(f"{where}: architecture {', '.join(map(str, architectures))} is not supported; {supported}")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES_BY_TYPE:
        raise ModelError(f"{where}: no architectures, and model_type {model_type!r} is not supported; {supported}")
    return FAMILIES_BY_TYPE[model_type]


def _num_kv_heads(fields: Fields, family: Family, num_heads: int) -> int:
    # A null means multi-head attention in every family; only an absent field means the family's default.
    default = num_heads if fields.has("num_key_value_heads") else family.num_kv_heads or num_heads
    return fields.size("num_key_value_heads", default)


def _sliding_window(fields: Fields, family: Family, num_layers: int) -> int | None:
    layer_types = set(fields.raw("layer_types") or ())
    unknown = layer_types - {"full_attention", "sliding_attention"}
    if unknown:
        raise fields.error("layer_types", "may name full_attention and sliding_attention alone")
    if family.sliding_window == "none":
        return None
    if family.sliding_window == "some":
        if not fields.flag("use_sliding_window", False):
            return None
        from_layer = fields.raw("max_window_layers")
        from_layer = 28 if from_layer is None else from_layer
        if "sliding_attention" not in layer_types if layer_types else from_layer >= num_layers:
            return None
    # Written null: no window. Not written: transformers' default, which is the same in the three families.
    if fields.has("sliding_window") and fields.raw("sliding_window") is None:
        return None
    return fields.size("sliding_window", 4096)


def _dtype(fields: Fields) -> str:
    name = "dtype" if fields.raw("dtype") is not None else "torch_dtype"
    value = fields.raw(name)
    if value is None or value == "auto":
        return "float32"
    value = value.removeprefix("torch.") if isinstance(value, str) else value
    if value not in DTYPES:
        raise fields.error(name, f"must be one of {', '.join(DTYPES)}")
    return str(value)
