"""The one reader of the worker's environment, and the frozen values that everything else is given.

A setting is a flag of `millrace worker`, or the environment variable named in its metadata: MILLRACE_ and the field in
capitals. Flags win. A bad value stops the process with the variable's name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Meta

from millrace_schemas.telemetry import wants_traces

from .errors import ConfigError
from .memory_limit import memory_limit

ENV_PREFIX = "MILLRACE_"

#: A setting of both parts: the front stores results, the engine's courier the prefix cache.
_Endpoint = Annotated[str | None, Meta(description="For an S3 that is not Amazon's.")]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine process needs; names and meanings are vLLM's. Sizes of 0 or None are settled from the device."""

    model: Annotated[str, Meta(description='Directory, hub name, or "demo" for the model in the package.')] = "demo"
    load_format: Annotated[
        Literal["auto", "dummy"], Meta(description="auto reads the weights, dummy makes random ones.")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Meta(description="auto, float32, bfloat16 or float16.")
    ] = "auto"
    device: Annotated[str, Meta(description="auto is cuda where there is one, else cpu.")] = "auto"
    max_model_len: Annotated[
        int | None, Meta(description="Most tokens of prompt and answer together. Default: the model's own limit.")
    ] = None
    max_num_seqs: Annotated[
        int | None,
        Meta(description="Most sequences of one step. Default: 1,024 on a GPU of 64 GiB or more, elsewhere 256."),
    ] = None
    max_num_batched_tokens: Annotated[int, Meta(description="Token budget of one step.")] = 8192
    long_prefill_token_threshold: Annotated[
        int,
        Meta(
            description="Beside interactive answers, prompts with more than this to compute share so many tokens of a "
            "step; 0: no such bound."
        ),
    ] = 0
    block_size: Annotated[int, Meta(description="Tokens a KV block: a power of two, at least 16 on a GPU.")] = 16
    gpu_memory_utilization: Annotated[
        float, Meta(description="Share of the device's memory for weights, activations and KV together.")
    ] = 0.9
    kv_cache_memory_bytes: Annotated[
        int | None,
        Meta(description="Bytes of KV cache. Default: from gpu-memory-utilization, and 256 MiB on a CPU."),
    ] = None
    enable_prefix_caching: Annotated[bool, Meta(description="Whether equal beginnings of prompts share KV.")] = True
    prefix_wait: Annotated[
        float,
        Meta(
            description="Seconds for which a batch job may wait for later ones that begin as those that run do; 0: all "
            "in order of arrival."
        ),
    ] = 2.0
    cpu_cache_gb: Annotated[
        float,
        Meta(
            description="Host memory, in GB of 10^9 bytes, for KV of prompts that come again and of preempted jobs; "
            "0: none."
        ),
    ] = 0.0
    disk_cache_dir: Annotated[
        str | None,
        Meta(
            description="Keep the KV of prompts that come again in this directory, which no other worker uses. "
            "Default: do not."
        ),
    ] = None
    disk_cache_gb: Annotated[float, Meta(description="Most that it takes, in GB of 10^9 bytes.")] = 20.0
    s3_cache: Annotated[
        str | None,
        Meta(
            description='Share what the disk cache holds with other workers through "s3://bucket/prefix". '
            "Default: do not."
        ),
    ] = None
    s3_endpoint_url: _Endpoint = None
    enforce_eager: Annotated[
        bool, Meta(description="Launch every kernel of a decode step by itself instead of replaying CUDA graphs.")
    ] = False
    seed: Annotated[int, Meta(description="Of dummy weights.")] = 0


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the front needs for the queue. Durations in seconds."""

    redis_url: Annotated[str, Meta(description="The queue's server.")] = "redis://localhost:6379/0"
    served_model_name: Annotated[
        str | None, Meta(description="The queue's name for the model. Default: the last component of --model.")
    ] = None
    lease: Annotated[float, Meta(description="Seconds without a renewal after which others take a job over.")] = 30.0
    max_attempts: Annotated[
        int, Meta(description="Deliveries of a job before it goes to the dead stream; the last one runs alone.")
    ] = 3
    retry_delay: Annotated[
        float, Meta(description="Seconds before a failed job's next attempt, doubled each time.")
    ] = 1.0
    grace: Annotated[
        float, Meta(description="Seconds for which a draining worker lets jobs finish before it hands them over.")
    ] = 30.0
    checkpoint_tokens: Annotated[int, Meta(description="A job's tokens are stored after this many new ones ...")] = 64
    checkpoint_interval: Annotated[float, Meta(description="... or after this many seconds.")] = 2.0
    result_ttl: Annotated[
        float, Meta(description="Seconds that results, and jobs' records after the end, are kept.")
    ] = 86_400.0
    model_ttl: Annotated[float, Meta(description="Seconds that the model stays registered without a worker.")] = (
        86_400.0
    )
    result_s3: Annotated[
        str | None, Meta(description='Where results over max-result-bytes go: "s3://bucket/prefix".')
    ] = None
    max_result_bytes: Annotated[int, Meta(description="Largest result in Redis.")] = 1024 * 1024
    s3_endpoint_url: _Endpoint = None
    pin_warm_timeout: Annotated[
        float,
        Meta(description="Seconds that a starting worker waits until its cache holds what is pinned; 0: it does not."),
    ] = 60.0
    max_pinned_tokens: Annotated[int, Meta(description="Most tokens of all pinned prefixes of the queue.")] = 262_144
    max_pinned_tokens_per_tenant: Annotated[int, Meta(description="Most tokens of those of one tenant.")] = 65_536
    engine_timeout: Annotated[
        float, Meta(description="An engine with work that is silent for so many seconds is killed and started again.")
    ] = 120.0


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    engine: EngineConfig = EngineConfig()
    stream: StreamConfig = StreamConfig()
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="debug, info, warning or error.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"], Meta(description="auto is console in a terminal, else json.")
    ] = "auto"
    log_prompts: Annotated[bool, Meta(description="Log the prompt and answer of each ended job, too.")] = False
    metrics_port: Annotated[
        int | None,
        Meta(description="Serve Prometheus' metrics, /healthz and /readyz here; 0: any free port. Default: do not."),
    ] = None
    metrics_host: Annotated[str, Meta(description="Address for that; 0.0.0.0 is all of this machine's.")] = "127.0.0.1"


def engine_environ(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the engine process: this one's, with threads that sleep while they wait for each other.

    OpenMP's spin by default; where the cores have other work, too, a step on the CPU then takes ten times as long.
    """
    return {"OMP_WAIT_POLICY": "passive", **(os.environ if environ is None else environ)}


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> WorkerConfig:
    """The configuration from flags (those that are not None) over environment over defaults.

    Raises ConfigError naming the flag or variable at fault.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in SETTINGS:
        variable = ENV_PREFIX + name.upper()
        if variable in environ:
            values[name], sources[name] = environ[variable], variable
    for name, value in (flags or {}).items():
        if name not in SETTINGS:
            raise ConfigError(f"no setting is called {name!r}")
        if value is not None:
            values[name], sources[name] = value, "--" + name.replace("_", "-")
    parts: dict[str, dict[str, Any]] = {"engine": {}, "stream": {}, "": {}}
    for name, value in values.items():
        setting = SETTINGS[name]
        try:
            converted = msgspec.convert(value, setting.type, strict=False)
        except msgspec.ValidationError as e:
            reason = f"must be one of {', '.join(setting.choices)}" if setting.choices else str(e)
            raise ConfigError(f"{sources[name]}={value!r}: {reason}") from e
        for part in setting.parts:
            parts[part][name] = converted
    config = WorkerConfig(engine=EngineConfig(**parts["engine"]), stream=StreamConfig(**parts["stream"]), **parts[""])
    _check(config, sources)
    return config


def traces_wanted(environ: Mapping[str, str] | None = None) -> bool:
    """Whether OpenTelemetry's own variables ask for traces. Raises TracingNotPossible."""
    return wants_traces(os.environ if environ is None else environ)


class Setting(NamedTuple):
    """One field of the configuration, for the reader above and for `--help`."""

    #: The fields of WorkerConfig that hold it; "" for WorkerConfig itself.
    parts: tuple[str, ...]
    type: Any
    default: Any
    description: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are allowed; none where any value of the type is."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()


def _settings() -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for part, struct in (("engine", EngineConfig), ("stream", StreamConfig), ("", WorkerConfig)):
        for field in msgspec.structs.fields(struct):
            if field.name not in ("engine", "stream"):
                type_, meta = get_args(field.type)
                parts = (*found[field.name].parts, part) if field.name in found else (part,)
                found[field.name] = Setting(parts, type_, field.default, meta.description)
    return found


#: All settings by name, in the order of the help text.
SETTINGS = _settings()


def _check(config: WorkerConfig, sources: Mapping[str, str]) -> None:
    engine, stream, memory_gb = config.engine, config.stream, memory_limit() / 10**9
    rules = (
        ("max_num_seqs", engine.max_num_seqs is None or engine.max_num_seqs >= 1, "must be at least 1"),
        ("max_num_batched_tokens", engine.max_num_batched_tokens >= 1, "must be at least 1"),
        ("long_prefill_token_threshold", engine.long_prefill_token_threshold >= 0, "must not be negative"),
        ("block_size", engine.block_size > 0 and engine.block_size.bit_count() == 1, "must be a power of two"),
        ("gpu_memory_utilization", 0 < engine.gpu_memory_utilization <= 1, "must lie in (0, 1]"),
        ("max_model_len", engine.max_model_len is None or engine.max_model_len >= 2, "must be at least 2"),
        (
            "kv_cache_memory_bytes",
            engine.kv_cache_memory_bytes is None or engine.kv_cache_memory_bytes > 0,
            "must be positive",
        ),
        ("prefix_wait", 0 <= engine.prefix_wait < math.inf, "must not be negative"),
        ("cpu_cache_gb", 0 <= engine.cpu_cache_gb < math.inf, "must be 0, or a number above it"),
        (
            "cpu_cache_gb",
            engine.cpu_cache_gb <= memory_gb,
            f"must be less than the {memory_gb:.1f} GB that this machine or container has, and leave room for the rest",
        ),
        ("disk_cache_gb", 0 < engine.disk_cache_gb < math.inf, "must be a number above 0"),
        (
            "disk_cache_gb",
            engine.disk_cache_dir is not None or "disk_cache_gb" not in sources,
            "needs --disk-cache-dir: without a directory there is no disk cache",
        ),
        (
            "disk_cache_dir",
            engine.disk_cache_dir is None or bool(engine.disk_cache_dir.strip()),
            "must name a directory; without the setting there is no disk cache",
        ),
        ("s3_cache", engine.s3_cache is None or _has_bucket(engine.s3_cache), "must be s3://bucket/prefix"),
        (
            "s3_cache",
            engine.s3_cache is None or engine.disk_cache_dir is not None,
            "needs --disk-cache-dir: records of the bucket are kept there, too",
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
        ("pin_warm_timeout", 0 <= stream.pin_warm_timeout < math.inf, "must not be negative"),
        ("max_pinned_tokens", stream.max_pinned_tokens >= 0, "must not be negative"),
        ("max_pinned_tokens_per_tenant", stream.max_pinned_tokens_per_tenant >= 0, "must not be negative"),
        ("engine_timeout", 0 < stream.engine_timeout < math.inf, "must be positive"),
        (
            "metrics_port",
            config.metrics_port is None or 0 <= config.metrics_port <= 65_535,
            "must lie in 0 to 65535",
        ),
        ("result_s3", stream.result_s3 is None or stream.result_s3.startswith("s3://"), "must be s3://bucket/prefix"),
    )
    for name, ok, what in rules:
        if not ok:
            part = next(part for part in (engine, stream, config) if hasattr(part, name))
            raise ConfigError(f"{sources.get(name, name)}={getattr(part, name)!r} {what}")


def _has_bucket(url: str) -> bool:
    return url.startswith("s3://") and bool(url.removeprefix("s3://").partition("/")[0])
