"""How long files stay: what callers say, in OpenAI's words, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millrace_schemas import InvalidRequest
from millrace_schemas.batch import Batch

#: What it is counted from: when the file is made.
ANCHOR = "created_at"
#: Seconds, as OpenAI has them.
MIN_SECONDS, MAX_SECONDS = 3600, 30 * 86_400


def read_expiry(value: Any, param: str) -> int | None:
    """Seconds of `{"anchor": "created_at", "seconds": 86400}`; None of None. Raises InvalidRequest naming `param`."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or set(value) != {"anchor", "seconds"} or value["anchor"] != ANCHOR:
        raise InvalidRequest(
            f'{param} is {{"anchor": "{ANCHOR}", "seconds": {MAX_SECONDS}}}, and no other anchor', param=param
        )
    seconds = value["seconds"]
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise InvalidRequest(
            f"{param}.seconds is a whole number from {MIN_SECONDS:,} to {MAX_SECONDS:,}", param=f"{param}.seconds"
        )
    return seconds


def read_form_expiry(fields: Mapping[str, str], param: str) -> int | None:
    """As `read_expiry`, of the fields `param[anchor]` and `param[seconds]` of a form."""
    given = {name: fields[f"{param}[{name}]"] for name in ("anchor", "seconds") if f"{param}[{name}]" in fields}
    if not given:
        return None
    seconds = given.get("seconds", "")
    number = int(seconds) if seconds.isascii() and seconds.isdecimal() and len(seconds) < 10 else seconds
    return read_expiry({**given, "seconds": number} if "seconds" in given else given, param)


def output_expires_at(batch: Batch, made_at: float) -> float | None:
    """When a file that is made of a batch's answers at `made_at` goes, Unix seconds; None: it stays."""
    return None if batch.output_expires_after is None else made_at + batch.output_expires_after
