"""Every Lua script starts with its key map: which key is which of KEYS, and what ARGV holds."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for folder in ("producer", "worker") for path in (ROOT / folder).rglob("*.lua"))


def test_there_are_scripts() -> None:
    assert SCRIPTS


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_starts_with_its_key_map(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = "\n".join(itertools.takewhile(lambda line: line.startswith("--"), text.splitlines()))
    for array in ("KEYS", "ARGV"):
        used = set(re.findall(rf"{array}\[(\d+)\]", text.removeprefix(head)))
        assert not used or array in head, f"{path.name} uses {array} and its first comment does not explain them"
    assert head, f"{path.name} does not start with a comment"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_never_scans_the_keyspace(path: Path) -> None:
    assert not re.search(r"""redis\.p?call\(\s*["'](KEYS|SCAN|FLUSH\w*)["']""", path.read_text(), re.IGNORECASE)
