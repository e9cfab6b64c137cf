"""A Llama decoder for training: parameters are named and shaped as in Hugging Face's LlamaForCausalLM.

Unlike that one it trains many rows on one shared prefix: the prefix's keys and values are computed once, for one row,
and every row attends to them. Gradients flow into the prefix as if it had been in every row.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu

#: Keys and values of one layer: [1, kv_heads, length, head_dim] each.
LayerPrefix = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes, under the names of a Llama config.json."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def config(self, *, eos_token_id: int, pad_token_id: int) -> dict[str, Any]:
        """config.json of the model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
            "initializer_range": 0.02,
            "dtype": "bfloat16",
        }


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, shape.hidden_size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, prefix: LayerPrefix | None
    ) -> tuple[Tensor, LayerPrefix]:
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        own = (k, v)
        if prefix is not None:
            k = torch.cat((prefix[0].expand(rows, -1, -1, -1), k), dim=2)
            v = torch.cat((prefix[1].expand(rows, -1, -1, -1), v), dim=2)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1)), own


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = FeedForward(shape)


class Trunk(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)


class Decoder(nn.Module):
    """The whole model; the output matrix is the embedding matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Trunk(shape)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # Matrices that add to the residual stream start smaller, the more layers there are.
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.num_hidden_layers) ** 0.5 if is_output else 0.02)
        inverse = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.outer(torch.arange(shape.max_position_embeddings).float(), inverse)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def _run(self, ids: Tensor, prefix: list[LayerPrefix] | None) -> tuple[Tensor, list[LayerPrefix]]:
        length = ids.shape[1]
        start = prefix[0][0].shape[2] if prefix else 0
        cos, sin = self.cos[start : start + length], self.sin[start : start + length]
        mask = None
        if prefix:
            # Padding stands at the end of a row, so the causal mask hides it from every real token.
            mask = torch.ones(length, start + length, dtype=torch.bool, device=ids.device).tril(start)
        x = self.model.embed_tokens(ids)
        own = []
        for index, layer in enumerate(self.model.layers):
            attended, layer_prefix = layer.self_attn(
                layer.input_layernorm(x), cos, sin, mask, prefix[index] if prefix else None
            )
            x = x + attended
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            own.append(layer_prefix)
        return self.model.norm(x), own

    def prefix(self, ids: Tensor) -> list[LayerPrefix]:
        """Keys and values of a prefix [1, length] for `forward`."""
        return self._run(ids, None)[1]

    def forward(self, ids: Tensor, prefix: list[LayerPrefix] | None = None) -> Tensor:
        """Logits [rows, length, vocab] of rows that all continue the same prefix."""
        hidden, _ = self._run(ids, prefix)
        return linear(hidden, self.model.embed_tokens.weight)
