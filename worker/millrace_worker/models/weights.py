"""Which tensors the decoder has, their shapes, and which rows of them each tensor of a checkpoint fills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .config import ModelConfig
from .families import LAYER_WEIGHTS, MODEL_WEIGHTS


@dataclass(frozen=True, slots=True)
class Slot:
    """Rows of a decoder tensor, and the checkpoint tensor of exactly this shape that fills them."""

    source: str
    target: str
    first_row: int
    shape: tuple[int, ...]


def slots(config: ModelConfig) -> list[Slot]:
    """Every tensor that a checkpoint of this model must have."""
    found = [*_fused("embed", MODEL_WEIGHTS["embed"], [(config.vocab_size, config.hidden_size)])]
    shapes = _layer_shapes(config)
    for layer in range(config.num_layers):
        for name, sources in LAYER_WEIGHTS.items():
            if name in shapes:
                full = tuple(f"model.layers.{layer}.{s}" for s in sources)
                found.extend(_fused(f"layers.{layer}.{name}", full, shapes[name]))
    found.extend(_fused("norm", MODEL_WEIGHTS["norm"], [(config.hidden_size,)]))
    if not config.tie_word_embeddings:
        found.extend(_fused("lm_head", MODEL_WEIGHTS["lm_head"], [(config.vocab_size, config.hidden_size)]))
    return found


def shapes(slots_: list[Slot]) -> dict[str, tuple[int, ...]]:
    """The shape of every decoder tensor."""
    sizes: dict[str, tuple[int, ...]] = {}
    for slot in slots_:
        sizes[slot.target] = (slot.first_row + slot.shape[0], *slot.shape[1:])
    return sizes


def _fused(target: str, sources: tuple[str, ...], parts: list[tuple[int, ...]]) -> Iterator[Slot]:
    row = 0
    for source, shape in zip(sources, parts, strict=True):
        yield Slot(source, target, row, shape)
        row += shape[0]


def _layer_shapes(config: ModelConfig) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the checkpoint's parts of each tensor that a layer of this model has."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, list[tuple[int, ...]]] = {
        "input_norm": [(hidden,)],
        "qkv_weight": [(q, hidden), (kv, hidden), (kv, hidden)],
        "o_weight": [(hidden, q)],
        "mlp_norm": [(hidden,)],
        "gate_up_weight": [(inner, hidden), (inner, hidden)],
        "down_weight": [(hidden, inner)],
    }
    if config.qkv_bias:
        shapes["qkv_bias"] = [(q,), (kv,), (kv,)]
    if config.o_bias:
        shapes["o_bias"] = [(hidden,)]
    if config.qk_norm:
        shapes["q_norm"] = shapes["k_norm"] = [(config.head_dim,)]
    if config.mlp_bias:
        shapes["gate_up_bias"] = [(inner,), (inner,)]
        shapes["down_bias"] = [(hidden,)]
    return shapes
