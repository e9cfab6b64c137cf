"""W3C's trace context, level 1: the 55 characters by which one trace goes through several programs."""

from __future__ import annotations

import re

from .errors import InvalidRequest

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def check_traceparent(text: str) -> None:
    """Raises InvalidRequest unless `text` is version-trace id-span id-flags, in lower-case hexadecimal digits."""
    if not is_traceparent(text):
        raise InvalidRequest(
            "traceparent is 00-<32 digits of a trace id>-<16 digits of a span id>-<2 digits of flags>, all hexadecimal "
            f"in lower case and neither id zero, not {text[:80]!r}",
            param="traceparent",
        )


def is_traceparent(text: str) -> bool:
    found = _FORM.fullmatch(text)
    return bool(found and found[1] != "ff" and found[2].strip("0") and found[3].strip("0"))


def trace_id_of(traceparent: str) -> str:
    """The trace's id, 32 digits, of a traceparent that was checked."""
    return traceparent[3:35]
