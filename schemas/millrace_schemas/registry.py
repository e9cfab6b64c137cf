"""What workers tell the world about themselves and their model."""

from __future__ import annotations

import msgspec

from .job import Lane
from .latency import Latencies


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A served model, registered by its workers with a time to live. Unknown fields are skipped: it is a notice."""

    name: str
    #: Most tokens of prompt and answer together.
    max_model_len: int
    vocab_size: int
    #: Whether `messages` and `system=` can be used.
    has_chat_template: bool = False


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's heartbeat. Counts are of the moment; times are Unix seconds."""

    name: str
    model: str
    host: str
    pid: int
    device: str
    started_at: float
    beat_at: float
    leased: int = 0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    finished: int = 0
    output_tokens: int = 0
    #: Slots for tokens in the KV blocks of running sequences, and those that hold a token, each summed over all steps:
    #: 1 - used / allocated is the share of the cache that was held and not filled.
    kv_allocated_slots: int = 0
    kv_used_slots: int = 0
    #: Tokens of the prompts that the engine began, and how many of them the prefix cache had.
    prompt_tokens: int = 0
    cached_tokens: int = 0
    #: The latter by tier of the cache.
    cached_by_tier: dict[str, int] = {}
    #: Tiers of the cache that it was told to have and that are not open.
    closed_tiers: list[str] = []
    #: Of the engine, and those in which attention read KV blocks once for several sequences.
    steps: int = 0
    shared_steps: int = 0
    #: Of completed jobs, by lane.
    latencies: dict[Lane, Latencies] = {}
