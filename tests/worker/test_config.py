"""Settings: flag over environment over default; a bad value stops the process with the setting's name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from millrace_worker.config import EngineConfig, StreamConfig, WorkerConfig, engine_environ, load
from millrace_worker.errors import ConfigError


def test_without_flags_or_environment_the_defaults_hold() -> None:
    assert load({}, {}) == WorkerConfig()


def test_the_environment_is_read_where_it_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_MAX_NUM_SEQS", "7")
    assert load().engine.max_num_seqs == 7


def test_the_environment_wins_over_the_default_and_the_flag_over_both() -> None:
    environ = {"MILLRACE_LEASE": "5", "MILLRACE_MODEL": "from-env", "MILLRACE_LOG_LEVEL": "debug"}
    config = load({"model": "from-flag", "lease": None}, environ)
    assert config.engine.model == "from-flag"
    assert config.stream.lease == 5.0
    assert config.log_level == "debug"
    assert config.stream.max_attempts == StreamConfig().max_attempts


def test_other_variables_are_left_alone() -> None:
    assert load({}, {"MODEL": "x", "LEASE": "nonsense", "MILLRACE_SOMETHING_ELSE": "1"}) == WorkerConfig()


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("false", False)])
def test_switches_are_words_or_digits(text: str, value: bool) -> None:
    assert load({}, {"MILLRACE_ENABLE_PREFIX_CACHING": text}).engine.enable_prefix_caching is value


def test_every_setting_can_come_from_the_environment_and_from_a_flag() -> None:
    for struct in (EngineConfig, StreamConfig, WorkerConfig):
        for field in msgspec.structs.fields(struct):
            if field.name in ("engine", "stream"):
                continue
            value = {"max_model_len": 64, "max_num_seqs": 8, "kv_cache_memory_bytes": 4096, "metrics_port": 9400}.get(
                field.name, field.default
            )
            is_place = field.name in ("result_s3", "s3_cache")
            value = "s3://bucket/results" if is_place else "text" if value is None else value
            # What it needs besides.
            more = {"disk_cache_dir": "kv"} if field.name in ("s3_cache", "disk_cache_gb") else {}
            variable = f"MILLRACE_{field.name.upper()}"
            for config in (load({field.name: value, **more}, {}), load(more, {variable: str(value)})):
                holder: Any = next(part for part in (config.engine, config.stream, config) if hasattr(part, field.name))
                assert getattr(holder, field.name) == value


def test_the_endpoint_of_s3_is_for_both_halves() -> None:
    config = load({"s3_endpoint_url": "http://here"}, {})
    assert config.stream.s3_endpoint_url == config.engine.s3_endpoint_url == "http://here"


BAD = [
    ("metrics_port", "65536", "0 to 65535"),
    ("max_num_seqs", "many", "int"),
    ("max_num_seqs", "0", "at least 1"),
    ("max_num_seqs", "1.5", "int"),
    ("max_num_batched_tokens", "0", "at least 1"),
    ("long_prefill_token_threshold", "-1", "negative"),
    ("prefix_wait", "-0.5", "negative"),
    ("block_size", "24", "power of two"),
    ("block_size", "0", "power of two"),
    ("gpu_memory_utilization", "0", r"\(0, 1\]"),
    ("gpu_memory_utilization", "90", r"\(0, 1\]"),
    ("max_model_len", "1", "at least 2"),
    ("kv_cache_memory_bytes", "0", "positive"),
    ("disk_cache_gb", "0", "a number above 0"),
    ("disk_cache_gb", "inf", "a number above 0"),
    ("dtype", "float64", "float64.*one of auto, float32, bfloat16, float16"),
    ("load_format", "pickle", "pickle"),
    ("enable_prefix_caching", "maybe", "bool"),
    ("log_level", "loud", "loud"),
    ("lease", "0.5", "at least 1 second"),
    ("lease", "inf", "at least 1 second"),
    ("lease", "nan", "at least 1 second"),
    ("lease", "", "float"),
    ("max_attempts", "0", "at least 1"),
    ("retry_delay", "-1", "negative"),
    ("grace", "-1", "negative"),
    ("checkpoint_tokens", "0", "at least 1"),
    ("checkpoint_interval", "0", "positive"),
    ("result_ttl", "0", "at least 1 second"),
    ("model_ttl", "0", "at least 1 second"),
    ("max_result_bytes", "0", "at least 1"),
    ("engine_timeout", "0", "positive"),
    ("result_s3", "bucket/prefix", "s3://bucket/prefix"),
    ("cpu_cache_gb", "-1", "a number above it"),
    ("cpu_cache_gb", "nan", "a number above it"),
    ("disk_cache_dir", "", "must name a directory"),
    ("cpu_cache_gb", "1000000", r"less than the \d+\.\d GB that this machine or container has"),
    ("disk_cache_gb", "5", "needs --disk-cache-dir"),
    ("s3_cache", "bucket/prefix", "s3://bucket/prefix"),
    ("s3_cache", "s3://", "s3://bucket/prefix"),
    ("s3_cache", "s3://bucket/prefix", "needs --disk-cache-dir"),
]


@pytest.mark.parametrize(("name", "text", "what"), BAD)
def test_a_bad_value_names_the_variable_or_the_flag(name: str, text: str, what: str) -> None:
    variable = f"MILLRACE_{name.upper()}"
    with pytest.raises(ConfigError, match=f"^{variable}=.*{what}"):
        load({}, {variable: text})
    with pytest.raises(ConfigError, match=f"^--{name.replace('_', '-')}=.*{what}"):
        load({name: text}, {})


def test_a_good_flag_hides_a_bad_variable() -> None:
    assert load({"lease": 5.0}, {"MILLRACE_LEASE": "nonsense"}).stream.lease == 5.0


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="no setting is called 'leese'"):
        load({"leese": 5}, {})


def test_nobody_writes_into_the_configuration() -> None:
    with pytest.raises(AttributeError):
        load({}, {}).engine.model = "other"  # type: ignore[misc]


def test_the_engine_has_this_environment_and_threads_that_sleep() -> None:
    assert engine_environ({"PATH": "/bin"}) == {"PATH": "/bin", "OMP_WAIT_POLICY": "passive"}
    assert engine_environ({"OMP_WAIT_POLICY": "active"}) == {"OMP_WAIT_POLICY": "active"}
