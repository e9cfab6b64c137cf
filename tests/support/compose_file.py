"""Reads docker-compose.yml as Compose does: merge keys are YAML's, variables come from a file of settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
#: ${NAME}, ${NAME:-default} and ${NAME:?message}; "$$" is a dollar of the container's own shell.
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")


def variables() -> dict[str, tuple[str, str]]:
    """By name: "-" and the default, "?" and the message, or two empty strings."""
    return {name: (kind, rest) for name, kind, rest in VARIABLE.findall(COMPOSE.read_text(encoding="utf-8"))}


def services() -> dict[str, dict[str, Any]]:
    """With every variable at its default, and the ones without at "x"."""
    text = VARIABLE.sub(lambda found: found[3] if found[2] == "-" else "x", COMPOSE.read_text(encoding="utf-8"))
    return yaml.safe_load(text)["services"]
