"""The decoder of every family: embedding, layers of attention and gated MLP, norm, logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import embedding

from millrace_kernels import embed, linear_added, norm_gated_linear, norm_linear, rotary_store

from .attention import PagedAttention
from .batch import ForwardBatch
from .config import ModelConfig
from .rope import cos_sin_table


class DecoderLayer:
    """One layer. Beside each part's result travels the residual sum of those before it, in the model's dtype.

    A result may come as the float32 parts of which it is the sum, or with the residual in it; see linear_added.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, torch.Tensor]):
        """`weights` are this layer's tensors by their names in families.LAYER_WEIGHTS; those absent are not run."""
        self._heads, self._kv_heads, self._head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self._eps = config.rms_norm_eps
        self._input_norm, self._mlp_norm = weights["input_norm"], weights["mlp_norm"]
        self._q_norm, self._k_norm = weights.get("q_norm"), weights.get("k_norm")
        self._qkv_weight, self._qkv_bias = weights["qkv_weight"], weights.get("qkv_bias")
        self._o_weight, self._o_bias = weights["o_weight"], weights.get("o_bias")
        self._gate_up_weight, self._gate_up_bias = weights["gate_up_weight"], weights.get("gate_up_bias")
        self._down_weight, self._down_bias = weights["down_weight"], weights.get("down_bias")

    def queries(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        kv: torch.Tensor,
        attention: PagedAttention,
        cos_sin: torch.Tensor,
        positions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(rotated queries [T, Hq, D], x + residual [T, H]), after the keys and values are in the cache.

        Without a residual, x is the sum.
        """
        qkv, residual = norm_linear(x, residual, self._input_norm, self._qkv_weight, self._qkv_bias, self._eps)
        heads = qkv.view(qkv.shape[0], -1, self._head_dim)
        q, k, v = heads.split((self._heads, self._kv_heads, self._kv_heads), dim=1)  # views, [T, heads, D]
        slots = attention.slot_mapping
        rotary_store(q, k, v, kv, slots, cos_sin, positions, self._q_norm, self._k_norm, self._eps)
        return q, residual

    def after_attention(
        self, attended: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(the layer's result, the residual to be added), [T, H] each, of attention's output [T, Hq, D].

        The memory of the residual that is given may come back with the sum.
        """
        x, rest = linear_added(attended.flatten(1), residual, self._o_weight, self._o_bias)
        gated, residual = norm_gated_linear(
            x, rest, self._mlp_norm, self._gate_up_weight, self._gate_up_bias, self._eps
        )
        return linear_added(gated, residual, self._down_weight, self._down_bias)


class Decoder:
    """A loaded model. Plain tensors, no gradients; `forward` may be captured into a CUDA graph for fixed shapes."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, torch.Tensor]):
        """`weights` are all decoder tensors, as weights.shapes names and shapes them, on one device, of one dtype."""
        self.config = config
        self._embed, self._norm = weights["embed"], weights["norm"]
        self._lm_head = weights["embed"] if config.tie_word_embeddings else weights["lm_head"]
        self._layers = [DecoderLayer(config, _of_layer(weights, i)) for i in range(config.num_layers)]
        self._cos_sin = cos_sin_table(config.rope, config.head_dim, config.max_context, self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations, logits and the KV cache."""
        return self._embed.dtype

    @property
    def device(self) -> torch.device:
        return self._embed.device

    @torch.inference_mode()
    def forward(
        self, batch: ForwardBatch, kv_cache: torch.Tensor, *, logits: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits [R, vocab_size] of `batch.logits_rows`, after storing the batch's keys and values in `kv_cache`.

        They are put into `logits`, if that is given.
        `kv_cache` is [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim], of the model's dtype and device.
        Positions must lie below config.max_context; nobody checks that here, because it would wait for the device.
        """
        attention = PagedAttention(batch, self.config.head_dim)
        last = self.config.num_layers - 1
        x: torch.Tensor = self._embedded(batch)
        residual: torch.Tensor | None = None
        for i, layer in enumerate(self._layers):
            kv = kv_cache[:, i]
            q, summed = layer.queries(x, residual, kv, attention, self._cos_sin, batch.positions)
            if i == last and not batch.logits_rows.shape[0]:
                return x.new_empty(0, self.config.vocab_size)
            attended = attention.attend(q, kv)
            if i == last:
                # What follows works on each token alone, so only the wanted ones go on.
                attended, summed = attended[batch.logits_rows], summed[batch.logits_rows]
            x, residual = layer.after_attention(attended, summed)
        return norm_linear(x, residual, self._norm, self._lm_head, None, self.config.rms_norm_eps, out=logits)[0]

    def _embedded(self, batch: ForwardBatch) -> torch.Tensor:
        if batch.newest is None:
            return embedding(batch.input_ids, self._embed)
        return embed(batch.input_ids, batch.newest, self._embed)


def _of_layer(weights: Mapping[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    prefix = f"layers.{layer}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
