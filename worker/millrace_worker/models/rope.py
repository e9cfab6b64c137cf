"""Tables of cos and sin for the rotary embedding: default, linear, llama3 and yarn, as transformers computes them."""

from __future__ import annotations

import math

import torch

from .rope_config import RopeConfig

#: Rows of the table that are computed at a time, to bound temporary memory.
_ROWS = 65536


def cos_sin_table(rope: RopeConfig, head_dim: int, max_positions: int, device: torch.device | str) -> torch.Tensor:
    """[max_positions, head_dim] float32: the cos of each of head_dim / 2 angles, then their sin."""
    frequencies = inverse_frequencies(rope, head_dim).to(device)
    table = torch.empty(max_positions, head_dim, dtype=torch.float32, device=device)
    for start in range(0, max_positions, _ROWS):
        rows = table[start : start + _ROWS]
        positions = torch.arange(start, start + rows.shape[0], dtype=torch.float32, device=device)
        angles = positions[:, None] * frequencies  # [rows, D / 2]
        rows[:, : head_dim // 2] = angles.cos() * rope.attention_factor
        rows[:, head_dim // 2 :] = angles.sin() * rope.attention_factor
    return table


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] float32 on the CPU: radians a position, after scaling."""
    inverse = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if rope.type == "linear":
        return inverse / rope.factor
    if rope.type == "llama3":
        return _llama3(rope, inverse)
    if rope.type == "yarn":
        return _yarn(rope, inverse, head_dim)
    return inverse


def _llama3(rope: RopeConfig, inverse: torch.Tensor) -> torch.Tensor:
    """Long waves are divided by the factor, short ones kept, those between mixed by their length."""
    wavelength = 2 * math.pi / inverse
    turns = rope.original_max_position_embeddings / wavelength
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    mixed = (1 - smooth) * inverse / rope.factor + smooth * inverse
    long = wavelength > rope.original_max_position_embeddings / rope.low_freq_factor
    short = wavelength < rope.original_max_position_embeddings / rope.high_freq_factor
    return torch.where(long, inverse / rope.factor, torch.where(short, inverse, mixed))


def _yarn(rope: RopeConfig, inverse: torch.Tensor, head_dim: int) -> torch.Tensor:
    """NTK by parts (arXiv 2309.00071): a linear ramp over dimensions from kept to divided frequencies."""

    def dimension(rotations: float) -> float:
        ratio = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inverse / rope.factor * (1 - kept) + inverse * kept
