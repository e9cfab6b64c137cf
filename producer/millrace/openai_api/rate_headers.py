"""What is left of a key's allowances, in OpenAI's headers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from millrace.rates import Allowance


def rate_headers(allowances: Mapping[str, Allowance]) -> dict[str, str]:
    """x-ratelimit-limit-requests and so on; `reset` is when all of a minute's worth can be used again."""
    headers: dict[str, str] = {}
    for name, allowance in allowances.items():
        headers[f"x-ratelimit-limit-{name}"] = str(allowance.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(allowance.remaining)
        headers[f"x-ratelimit-reset-{name}"] = duration(allowance.reset)
    return headers


def retry_headers(seconds: float) -> dict[str, str]:
    """When to ask again, in both ways that OpenAI's clients know."""
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1.5s, 6m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{text}s" if minutes else f"{text}s"
