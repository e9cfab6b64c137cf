"""Rotary tables against transformers' own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from millrace_worker.models.config import parse_config
from millrace_worker.models.rope import cos_sin_table, inverse_frequencies

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, **LLAMA3},
        {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, **LLAMA3},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "attention_factor": 0.75, "truncate": False},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 16},
    ],
    ids=lambda p: "-".join(map(str, p.values())),
)
def test_tables_equal_those_of_transformers(head_dim: int, parameters: dict[str, Any]) -> None:
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 10,
        "hidden_size": 2 * head_dim,
        "intermediate_size": 10,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32768,
        "rope_parameters": parameters,
    }
    rope = parse_config(raw).rope
    theirs = LlamaConfig(**{k: v for k, v in raw.items() if k != "architectures"})
    init = ROPE_INIT_FUNCTIONS.get(parameters["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters)
    frequencies, attention_factor = init(theirs)
    torch.testing.assert_close(inverse_frequencies(rope, head_dim), frequencies, rtol=1e-6, atol=0)
    assert rope.attention_factor == pytest.approx(attention_factor, rel=1e-12)

    cos, sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1), torch.arange(300)[None])
    half = head_dim // 2
    want = torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=-1)
    torch.testing.assert_close(cos_sin_table(rope, head_dim, 300, "cpu"), want, rtol=0, atol=2e-5)


def test_a_long_table_is_the_same_in_its_later_pieces() -> None:
    rope = parse_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 10,
            "hidden_size": 32,
            "intermediate_size": 10,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
    ).rope
    table = cos_sin_table(rope, 16, 70000, "cpu")
    assert table.shape == (70000, 16)
    angles = 69999.0 * inverse_frequencies(rope, 16)
    torch.testing.assert_close(table[-1], torch.cat((angles.cos(), angles.sin())), rtol=0, atol=1e-5)
