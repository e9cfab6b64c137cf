"""Typed reading of a JSON object, with errors that name the file, the field, what it holds and what it must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ModelError


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises ModelError when there is no such file or no object in it."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{file.parent}: there is no {file.name}") from None
    except OSError as e:
        raise ModelError(f"{file}: cannot be read: {e.strerror}") from e
    except ValueError as e:
        raise ModelError(f"{file}: is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise ModelError(f"{file}: must hold a JSON object, not {type(value).__name__}")
    return value


class Fields:
    """The fields of one object; a null counts as absent, as transformers has it for all fields read here."""

    __slots__ = ("_values", "_where")

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values = values
        self._where = where

    def raw(self, name: str) -> Any:
        return self._values.get(name)

    def has(self, name: str) -> bool:
        """Whether the field is written, be it as null."""
        return name in self._values

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer; required without a default."""
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise ModelError(f"{self._where}: {name} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, "must be a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number; required without a default."""
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise ModelError(f"{self._where}: {name} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(name, "must be a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them; empty when absent."""
        value = self._values.get(name)
        ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise self.error(name, "must be a token id or a list of them")
        return ids

    def error(self, name: str, what: str) -> ModelError:
        return ModelError(f"{self._where}: {name} {what}, not {self._values.get(name)!r}")
