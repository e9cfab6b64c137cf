"""infra/docker/serve-gateway.sh: who is asked for keys depends on where the port is published."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "docker" / "serve-gateway.sh"


def arguments(tmp_path: Path, bind: str | None, **more: str) -> tuple[int, str]:
    """What `millrace` is called with, by a program of that name that prints its arguments."""
    program = tmp_path / "millrace"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | ({} if bind is None else {"GATEWAY_BIND": bind}) | more
    done = subprocess.run(["sh", SCRIPT, "--no-webhooks"], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip() or done.stderr


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.0.1.1", "localhost", "::1", "[::1]"])
def test_this_machine_needs_no_key(tmp_path: Path, bind: str) -> None:
    flags = "--host 0.0.0.0 --port 8000 --allow-open --allow-host gateway --no-webhooks"
    assert arguments(tmp_path, bind) == (0, f"gateway {flags}")


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "10.1.2.3", "*"])
def test_others_need_one(tmp_path: Path, bind: str) -> None:
    assert arguments(tmp_path, bind) == (0, "gateway --host 0.0.0.0 --port 8000 --require-keys --no-webhooks")


def test_nothing_is_open_by_accident(tmp_path: Path) -> None:
    for bind in (None, ""):
        code, words = arguments(tmp_path, bind)
        assert code != 0
        assert "the address on which the port is published" in words


def test_files_are_kept_where_it_is_told(tmp_path: Path) -> None:
    flags = "--files s3://millrace/files --host 0.0.0.0 --port 8000 --require-keys --no-webhooks"
    code, words = arguments(tmp_path, "0.0.0.0", GATEWAY_FILES="s3://millrace/files")
    assert (code, sorted(words.split())) == (0, sorted(f"gateway {flags}".split()))
