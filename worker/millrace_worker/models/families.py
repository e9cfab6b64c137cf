"""The families that the one decoder runs, and what a config.json of each means when it leaves a field out.

Defaults are those of transformers' configuration classes (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one family differs from the others; everything else is the same decoder."""

    name: str
    #: What config.json lists under "architectures".
    architecture: str
    max_position_embeddings: int
    #: None: as many as query heads.
    num_kv_heads: int | None
    #: None: hidden_size // num_heads.
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    #: "config": where `attention_bias` says so, on q, k, v and o; "qkv": on q, k and v.
    attention_bias: Literal["never", "qkv", "config"] = "never"
    #: Whether `mlp_bias` is a field of the family.
    mlp_bias: bool = False
    #: RMSNorm over each head of q and k before rotary.
    qk_norm: bool = False
    #: "all": `sliding_window` holds for every layer; "some": if `use_sliding_window`, for those from
    #: `max_window_layers` on or as `layer_types` says; "none": the family has no such field.
    sliding_window: Literal["none", "all", "some"] = "none"


_FAMILIES = (
    Family(
        name="llama",
        architecture="LlamaForCausalLM",
        max_position_embeddings=2048,
        num_kv_heads=None,
        attention_bias="config",
        mlp_bias=True,
    ),
    Family(
        name="mistral",
        architecture="MistralForCausalLM",
        max_position_embeddings=131072,
        num_kv_heads=8,
        sliding_window="all",
    ),
    Family(
        name="qwen2",
        architecture="Qwen2ForCausalLM",
        max_position_embeddings=32768,
        num_kv_heads=32,
        attention_bias="qkv",
        sliding_window="some",
    ),
    Family(
        name="qwen3",
        architecture="Qwen3ForCausalLM",
        max_position_embeddings=32768,
        num_kv_heads=32,
        head_dim=128,
        attention_bias="config",
        qk_norm=True,
        sliding_window="some",
    ),
)

#: By architecture name.
FAMILIES: MappingProxyType[str, Family] = MappingProxyType({f.architecture: f for f in _FAMILIES})
#: By `model_type`, for a config.json without "architectures".
FAMILIES_BY_TYPE: MappingProxyType[str, Family] = MappingProxyType({f.name: f for f in _FAMILIES})

#: Tensor of the decoder -> tensors of the checkpoint whose rows it holds, in order; the same in all families.
MODEL_WEIGHTS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "embed": ("model.embed_tokens.weight",),
        "norm": ("model.norm.weight",),
        "lm_head": ("lm_head.weight",),
    }
)
#: Likewise within a layer, after "layers.<n>." and "model.layers.<n>.".
LAYER_WEIGHTS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "input_norm": ("input_layernorm.weight",),
        "qkv_weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        "qkv_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        "q_norm": ("self_attn.q_norm.weight",),
        "k_norm": ("self_attn.k_norm.weight",),
        "o_weight": ("self_attn.o_proj.weight",),
        "o_bias": ("self_attn.o_proj.bias",),
        "mlp_norm": ("post_attention_layernorm.weight",),
        "gate_up_weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "gate_up_bias": ("mlp.gate_proj.bias", "mlp.up_proj.bias"),
        "down_weight": ("mlp.down_proj.weight",),
        "down_bias": ("mlp.down_proj.bias",),
    }
)
#: Ends of names of tensors that old checkpoints carry and that are computed from the configuration.
KNOWN_BUFFERS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
