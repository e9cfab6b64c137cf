"""Shapes of the models that the benchmarks run with random weights, and a directory with the config.json of one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 32768,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}

MODELS: dict[str, dict[str, Any]] = {
    "llama8b": {
        **_COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "mlp_bias": False,
    },
    "qwen3_0_6b": {
        **_COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
}


def model_directory(name: str) -> str:
    """`name` itself when it is a path or a hub name, else a directory holding the config.json of that shape."""
    if name not in MODELS:
        return name
    directory = Path(tempfile.gettempdir()) / "millrace-bench" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(MODELS[name]))
    return str(directory)
