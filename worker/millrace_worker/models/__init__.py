"""One decoder for the Llama-shaped families, its configuration and the loader of its weights. No Redis, no engine."""

from __future__ import annotations

from .batch import ForwardBatch
from .config import ModelConfig, load_config
from .decoder import Decoder
from .loader import load_model

__all__ = ["Decoder", "ForwardBatch", "ModelConfig", "load_config", "load_model"]
