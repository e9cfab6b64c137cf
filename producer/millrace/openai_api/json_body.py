"""JSON that strangers sent: numbers as JSON means them, and no deeper than anybody needs."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from .errors import ApiError, invalid

#: Arrays and objects within each other.
MAX_DEPTH = 32


def decode_body(data: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """Raises ApiError, a 400, when it is no JSON, has numbers out of range or is nested too deeply."""
    try:
        value = _DECODER.decode(data)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except (msgspec.MsgspecError, UnicodeError) as e:
        raise invalid(f"the body is not JSON: {e}", code="invalid_json") from None
    _check_depth(value, max_depth)
    return value


def _number(text: str) -> float:
    """A number that was written with a point or an exponent; 16.0 is the integer 16, as everywhere in JSON."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is out of range")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


_DECODER = msgspec.json.Decoder(float_hook=_number)


def _check_depth(value: Any, max_depth: int) -> None:
    """Level by level: recursion is what the limit is there to keep away from."""
    level = [value] if isinstance(value, dict | list) else []
    depth = 0
    while level:
        depth += 1
        if depth > max_depth:
            raise _too_deep(max_depth)
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]


def _too_deep(max_depth: int) -> ApiError:
    return invalid(f"the body nests arrays and objects more than {max_depth} deep", code="invalid_json")
