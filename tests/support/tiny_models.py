"""Tiny random models of every family, made by transformers, for tests that load or run one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}

#: By name. Between them: every family, biases, both kinds of head, and a head_dim apart from hidden_size / heads.
CONFIGS: dict[str, PretrainedConfig] = {
    "llama3-untied": LlamaConfig(**SHAPE, rope_parameters=LLAMA3, tie_word_embeddings=False),
    "llama3-tied": LlamaConfig(**SHAPE, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama-biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, head_dim=16),
    "mistral": MistralConfig(**SHAPE, sliding_window=None, head_dim=16),
    "mistral-window": MistralConfig(**SHAPE, sliding_window=80),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2-yarn": Qwen2Config(**SHAPE, rope_parameters=YARN),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32),
}


def make_model(name: str) -> PreTrainedModel:
    """A random model in float32 whose biases and norms are random too, so that forgetting one shows."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if key.endswith("bias"):
                tensor.normal_(0.0, 0.3)
            elif "norm" in key:
                tensor.uniform_(0.5, 1.5)
    return model
