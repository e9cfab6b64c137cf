"""Bytes in Redis and S3: what was written is read back, and anything else is a DecodeError."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import millrace_schemas
from millrace_schemas import (
    SCHEMA_VERSION,
    Choice,
    DecodeError,
    FinishReason,
    InvalidRequest,
    ModelInfo,
    Request,
    Sampling,
    Tokens,
    decode,
    encode,
)
from wire_values import WIRE_VALUES

every_value = pytest.mark.parametrize(("value", "type_"), WIRE_VALUES.values(), ids=WIRE_VALUES)
every_type = pytest.mark.parametrize("type_", {str(t): t for _, t in WIRE_VALUES.values()}.values())

#: Structs that travel inside others, or never.
_PARTS = {"Choice", "HeldPin", "Latencies", "Message", "Timings", "TokenLogprob", "TopLogprob", "Usage"}

#: What an older reader may read as far as it understands it.
_NOTICES = ("job-record", "model-info", "webhook-record", "worker-cache", "worker-info")


def with_version(body: Any) -> bytes:
    return bytes((SCHEMA_VERSION,)) + msgspec.msgpack.encode(body)


def structs_in(fields: Any) -> Iterator[dict[str, Any]]:
    """Every map in a decoded value that is a Struct's; others are maps of names to values."""
    if isinstance(fields, dict):
        yield fields
    for part in fields.items() if isinstance(fields, dict) else enumerate(fields):
        if isinstance(part[1], dict | list) and part[0] not in ("metadata", "logit_bias", "cached_by_tier"):
            yield from structs_in(part[1])


@every_value
def test_a_value_survives_the_round_trip(value: Any, type_: Any) -> None:
    data = encode(value)
    assert data[0] == SCHEMA_VERSION
    assert decode(data, type_) == value
    assert encode(decode(data, type_)) == data


def test_every_exported_struct_has_a_round_trip() -> None:
    exported = {
        name
        for name in millrace_schemas.__all__
        if isinstance(found := getattr(millrace_schemas, name), type) and issubclass(found, msgspec.Struct)
    }
    assert exported - _PARTS == {type(value).__name__ for value, _ in WIRE_VALUES.values()}


@every_value
def test_every_truncation_is_a_decode_error(value: Any, type_: Any) -> None:
    data = encode(value)
    for length in range(len(data)):
        with pytest.raises(DecodeError) as caught:
            decode(data[:length], type_)
        assert caught.value.data == data[:length]


@every_value
def test_trailing_bytes_are_a_decode_error(value: Any, type_: Any) -> None:
    with pytest.raises(DecodeError, match="trailing"):
        decode(encode(value) + b"\x00", type_)


@every_value
def test_another_schema_version_is_named(value: Any, type_: Any) -> None:
    body = encode(value)[1:]
    for version in {0, SCHEMA_VERSION + 1, 255}:
        with pytest.raises(DecodeError, match=f"schema version {version}, .*reads version {SCHEMA_VERSION}"):
            decode(bytes((version,)) + body, type_)


@pytest.mark.parametrize("name", [name for name in WIRE_VALUES if name not in _NOTICES])
def test_an_unknown_field_is_refused_by_name_at_any_depth(name: str) -> None:
    value, type_ = WIRE_VALUES[name]
    fields = msgspec.msgpack.decode(encode(value)[1:])
    for holder in structs_in(fields):
        holder["colour"] = "red"
        with pytest.raises(DecodeError, match="colour"):
            decode(with_version(fields), type_)
        del holder["colour"]
    assert decode(with_version(fields), type_) == value


@pytest.mark.parametrize("name", _NOTICES)
def test_notices_skip_unknown_fields(name: str) -> None:
    value, type_ = WIRE_VALUES[name]
    fields = msgspec.msgpack.decode(encode(value)[1:]) | {"colour": "red"}
    assert decode(with_version(fields), type_) == value


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DecodeError, match="model"):
        decode(with_version({"prompt": "a"}), Request)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"model": 5, "prompt": "a"}, r"\$\.model"),
        ({"model": "demo", "prompt": "a", "lane": "fast"}, r"\$\.lane"),
        ({"model": "demo", "prompt": "a", "sampling": {"top_p": "high"}}, r"\$\.sampling\.top_p"),
        ({"model": "demo", "prompt_token_ids": [1, 2.5]}, r"\$\.prompt_token_ids\[1\]"),
        ({"model": "demo", "messages": [{"role": "wizard", "content": ""}]}, r"\$\.messages\[0\]\.role"),
    ],
)
def test_an_ill_typed_field_is_named(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(DecodeError, match=names):
        decode(with_version(fields), Request)


def test_values_out_of_range_are_refused_on_reading_too() -> None:
    with pytest.raises(DecodeError, match="top_p must lie in"):
        decode(with_version({"model": "demo", "prompt": "a", "sampling": {"top_p": 2.0}}), Request)


def test_what_nobody_asked_for_is_not_written() -> None:
    """So that older readers, who know no log-probabilities and no penalties, read everything else."""
    choice = Choice(0, "a", (5,), FinishReason.STOP)
    assert set(msgspec.to_builtins(choice)) == {"index", "text", "token_ids", "finish_reason"}
    assert set(msgspec.to_builtins(Tokens(0, (5,), "a"))) == {"type", "start", "token_ids", "text", "index"}
    assert msgspec.to_builtins(Sampling(max_tokens=5)) == {"max_tokens": 5}


def test_no_bytes_at_all() -> None:
    with pytest.raises(DecodeError, match="Request: no bytes at all"):
        decode(b"", Request)


def test_a_field_nested_without_end_is_a_decode_error() -> None:
    """Also where the field is unknown and skipped, which is where the recursion happens."""
    data = bytes((SCHEMA_VERSION,)) + b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(DecodeError):
        decode(data, ModelInfo)


def test_a_length_that_lies_is_a_decode_error() -> None:
    data = bytes((SCHEMA_VERSION,)) + b"\x81\xb0prompt_token_ids\xdd\xff\xff\xff\xff"
    with pytest.raises(DecodeError, match="truncated"):
        decode(data, Request)


def test_text_that_is_no_utf8_is_a_decode_error() -> None:
    data = bytes((SCHEMA_VERSION,)) + b"\x82\xa5model\xa1x\xa6prompt\xa2\xc3\x28"
    with pytest.raises(DecodeError):
        decode(data, Request)


@every_type
def test_random_bytes_never_raise_anything_else(type_: Any) -> None:
    """Pure noise, noise behind a right version byte, and damaged real values."""
    rng = random.Random(17)
    seeds = [encode(value) for value, t in WIRE_VALUES.values() if t == type_]
    for turn in range(600):
        if turn % 3 == 0:
            data = rng.randbytes(rng.randrange(1, 60))
        elif turn % 3 == 1:
            data = bytes((SCHEMA_VERSION,)) + rng.randbytes(rng.randrange(60))
        else:
            damaged = bytearray(rng.choice(seeds))
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            data = bytes(damaged)
        with contextlib.suppress(DecodeError):
            value = decode(data, type_)
            assert encode(decode(encode(value), type_)) == encode(value)


def test_text_that_cannot_be_utf8_is_refused_when_written() -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        encode(Request(model="demo", prompt="lone \ud800 surrogate"))


def test_defaults_are_not_written() -> None:
    assert msgspec.msgpack.decode(encode(Request(model="m", prompt="p"))[1:]) == {"model": "m", "prompt": "p"}
    assert len(encode(Sampling())) == 2
