"""The one reader of the worker's environment, and the frozen values that everything else is given.

A setting is a flag of `millrace worker`, or the environment variable named in its metadata: MILLRACE_ and the field in
capitals. Flags win. A bad value stops the process with the variable's name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from .errors import ConfigError

ENV_PREFIX = "MILLRACE_"


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine process needs; names and meanings are vLLM's. Sizes of 0 or None are settled from the device."""

    #: Directory, hub name, or "demo" for the model in the package.
    model: str = "demo"
    load_format: Literal["auto", "dummy"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    #: "auto" is cuda where there is one, else cpu.
    device: str = "auto"
    #: Most tokens of prompt and answer; None: the model's own limit.
    max_model_len: int | None = None
    max_num_seqs: int = 256
    #: Token budget of one step.
    max_num_batched_tokens: int = 8192
    #: Tokens a KV block; a power of two, at least 16 on a GPU.
    block_size: int = 16
    #: Share of the device's memory for weights, activations and KV together.
    gpu_memory_utilization: float = 0.9
    #: Bytes of KV cache; None: from gpu_memory_utilization, and 256 MiB on a CPU.
    kv_cache_memory_bytes: int | None = None
    enable_prefix_caching: bool = True
    #: Launch every kernel of a decode step by itself instead of replaying CUDA graphs.
    enforce_eager: bool = False
    #: Seed of dummy weights.
    seed: int = 0


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the front needs for the queue. Durations in seconds."""

    redis_url: str = "redis://localhost:6379/0"
    #: The queue's name for the model; None: the last component of `model`.
    served_model_name: str | None = None
    #: A job whose lease nobody renewed for this long is taken over.
    lease: float = 30.0
    #: Deliveries of a job before it goes to the dead stream. The last one runs alone.
    max_attempts: int = 3
    #: Back-off before a failed job's next attempt, doubled each time.
    retry_delay: float = 1.0
    #: How long a draining worker lets jobs finish before it hands them back.
    grace: float = 30.0
    #: A running job's tokens are checkpointed after this many new ones or this many seconds.
    checkpoint_tokens: int = 64
    checkpoint_interval: float = 2.0
    #: Time to live of results, and of job records after the end.
    result_ttl: float = 86_400.0
    #: Time to live of the model's registration without a worker.
    model_ttl: float = 86_400.0
    #: Results over max_result_bytes go here when it is set: "s3://bucket/prefix".
    result_s3: str | None = None
    max_result_bytes: int = 1024 * 1024
    s3_endpoint_url: str | None = None
    #: An engine that has work and says nothing for this long is killed and started again.
    engine_timeout: float = 120.0


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    engine: EngineConfig = EngineConfig()
    stream: StreamConfig = StreamConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> WorkerConfig:
    """The configuration from flags (those that are not None) over environment over defaults.

    Raises ConfigError naming the flag or variable at fault.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in _FIELDS:
        variable = ENV_PREFIX + name.upper()
        if variable in environ:
            values[name], sources[name] = environ[variable], variable
    for name, value in (flags or {}).items():
        if name not in _FIELDS:
            raise ConfigError(f"no setting is called {name!r}")
        if value is not None:
            values[name], sources[name] = value, "--" + name.replace("_", "-")
    parts: dict[str, dict[str, Any]] = {"engine": {}, "stream": {}, "": {}}
    for name, value in values.items():
        part, type_ = _FIELDS[name]
        try:
            parts[part][name] = msgspec.convert(value, type_, strict=False)
        except msgspec.ValidationError as e:
            raise ConfigError(f"{sources[name]}={value!r}: {e}") from e
    config = WorkerConfig(engine=EngineConfig(**parts["engine"]), stream=StreamConfig(**parts["stream"]), **parts[""])
    _check(config, sources)
    return config


def _fields() -> dict[str, tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {}
    for part, struct in (("engine", EngineConfig), ("stream", StreamConfig), ("", WorkerConfig)):
        for field in msgspec.structs.fields(struct):
            if field.name not in ("engine", "stream"):
                found[field.name] = (part, field.type)
    return found


_FIELDS = _fields()


def _check(config: WorkerConfig, sources: Mapping[str, str]) -> None:
    engine, stream = config.engine, config.stream
    rules = (
        ("max_num_seqs", engine.max_num_seqs >= 1, "must be at least 1"),
        ("max_num_batched_tokens", engine.max_num_batched_tokens >= 1, "must be at least 1"),
        ("block_size", engine.block_size > 0 and engine.block_size.bit_count() == 1, "must be a power of two"),
        ("gpu_memory_utilization", 0 < engine.gpu_memory_utilization <= 1, "must lie in (0, 1]"),
        ("max_model_len", engine.max_model_len is None or engine.max_model_len >= 2, "must be at least 2"),
        (
            "kv_cache_memory_bytes",
            engine.kv_cache_memory_bytes is None or engine.kv_cache_memory_bytes > 0,
            "must be positive",
        ),
        ("lease", 1 <= stream.lease < math.inf, "must be at least 1 second"),
        ("max_attempts", stream.max_attempts >= 1, "must be at least 1"),
        ("retry_delay", 0 <= stream.retry_delay < math.inf, "must not be negative"),
        ("grace", 0 <= stream.grace < math.inf, "must not be negative"),
        ("checkpoint_tokens", stream.checkpoint_tokens >= 1, "must be at least 1"),
        ("checkpoint_interval", 0 < stream.checkpoint_interval < math.inf, "must be positive"),
        ("result_ttl", 1 <= stream.result_ttl < math.inf, "must be at least 1 second"),
        ("model_ttl", 1 <= stream.model_ttl < math.inf, "must be at least 1 second"),
        ("max_result_bytes", stream.max_result_bytes >= 1, "must be at least 1"),
        ("engine_timeout", 0 < stream.engine_timeout < math.inf, "must be positive"),
        ("result_s3", stream.result_s3 is None or stream.result_s3.startswith("s3://"), "must be s3://bucket/prefix"),
    )
    for name, ok, what in rules:
        if not ok:
            part = engine if hasattr(engine, name) else stream
            raise ConfigError(f"{sources.get(name, name)}={getattr(part, name)!r} {what}")
