"""Bytes in Redis and S3: one schema-version byte, then msgpack. Never pickle."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from .errors import DecodeError, InvalidRequest

#: Raised when a reader of the old version would misread what a writer of the new one wrote.
SCHEMA_VERSION = 1

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(value: msgspec.Struct) -> bytes:
    """`value` as stored bytes.

    Raises InvalidRequest when a string in it is not valid Unicode (a lone surrogate), so cannot be UTF-8.
    """
    try:
        return bytes((SCHEMA_VERSION,)) + _encoder.encode(value)
    except UnicodeEncodeError as e:
        raise InvalidRequest(f"text is not valid Unicode and cannot be sent as UTF-8: {e.reason}") from e


def decode(data: bytes, type_: type[T]) -> T:
    """The value of `type_` in stored bytes.

    Raises DecodeError on another schema version, on broken msgpack, and on missing, unknown or ill-typed fields.
    """
    name = getattr(type_, "__name__", "value")
    if not data:
        raise DecodeError(f"{name}: no bytes at all", data)
    if data[0] != SCHEMA_VERSION:
        raise DecodeError(
            f"{name}: schema version {data[0]}, and this build reads version {SCHEMA_VERSION}; "
            "run the same Millrace release on both sides",
            data,
        )
    decoder = _decoders.get(type_)
    if decoder is None:
        decoder = _decoders[type_] = msgspec.msgpack.Decoder(type_)
    try:
        return decoder.decode(memoryview(data)[1:])  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DecodeError(f"{name}: {e}", data) from e
