"""A file of prefixes that are to be pinned: JSON lines, or the text of one system prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from millrace_schemas import InvalidRequest

#: Names that end so are JSON lines; any other file is a system prompt.
LINES = (".jsonl", ".ndjson")
#: What a line may have: arguments of `submit`.
FIELDS = ("system", "messages", "prompt", "prompt_token_ids", "cache_salt", "cache_ttl")
#: The user's message where there is a system prompt alone; nothing of it is pinned.
_ANY = "."


class Prefix(NamedTuple):
    """One of them; `where` names it in messages."""

    where: str
    #: Arguments of `submit`.
    fields: dict[str, Any]


def read_prefixes(path: Path, ttl: float | None) -> list[Prefix]:
    """Those of a file; `ttl` holds for those that have no cache_ttl.

    Raises InvalidRequest naming the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InvalidRequest(f"{path} is not UTF-8: {e.reason} at byte {e.start}") from e
    if path.suffix.lower() not in LINES:
        if not text.strip():
            raise InvalidRequest(f"{path} is empty; it is taken for a system prompt")
        fields: dict[str, Any] = {"system": text.removesuffix("\n"), "prompt": _ANY}
        return [Prefix(str(path), _pinned(fields, ttl))]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InvalidRequest(f"{path} has no lines; each is an object with {_one_of_them()}")
    return [Prefix(f"line {number}", _pinned(_line(f"{path} line {number}", line), ttl)) for number, line in lines]


def _line(where: str, line: str) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as e:
        raise InvalidRequest(f"{where} is no JSON: {e}") from e
    if not isinstance(fields, dict):
        raise InvalidRequest(f"{where} must be an object with {_one_of_them()}")
    unknown = next((name for name in fields if name not in FIELDS), None)
    if unknown is not None:
        raise InvalidRequest(f"{where}: there is no {unknown[:80]!r} here; there are {', '.join(FIELDS)}")
    if "system" in fields:
        fields.setdefault("prompt", _ANY)
    return fields


def _pinned(fields: dict[str, Any], ttl: float | None) -> dict[str, Any]:
    given = {} if ttl is None else {"cache_ttl": ttl}
    return {**given, **fields, "cache": "pin", "sampling": {"max_tokens": 1, "temperature": 0.0}}


def _one_of_them() -> str:
    return "system, messages, prompt or prompt_token_ids"
