"""What the README says can be pasted beside `millrace up` is pasted, and answers."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.embedded import free_port

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(heading: str) -> list[tuple[str, str]]:
    """(language, text) of the blocks of code under a heading."""
    section = re.split(rf"^##+ {heading}\n", README, maxsplit=1, flags=re.MULTILINE)[1].split("\n#", 1)[0]
    return re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, str]]:
    """The README's places and those of what runs here."""
    http, redis = free_port(), free_port()
    command = [sys.executable, "-m", "millrace", "up", "--port", str(http), "--redis-port", str(redis)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 90)[0], "it was not ready in time"
        process.stdout.readline()
        yield {"localhost:8000": f"localhost:{http}", "localhost:6379": f"localhost:{redis}"}
        process.terminate()
        process.communicate(timeout=30)


def paste(language: str, text: str, ports: dict[str, str], directory: Path | None = None) -> str:
    for place, here in ports.items():
        text = text.replace(place, here)
    text = text.replace(".venv/bin/millrace", f"{sys.executable} -m millrace")
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-ec", text]
    environ = {**os.environ, "MILLRACE_REDIS_URL": f"redis://{ports['localhost:6379']}/0"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=directory, env=environ
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_web_backend(ports: dict[str, str]) -> None:
    (_, client), (_, openai) = blocks("From a web backend")
    lines = paste("python", client, ports).splitlines()
    assert lines[0].startswith("demo-")
    assert lines[1].startswith("Started(")
    assert lines[-1] == "QUIET RIVER"
    assert paste("python", openai, ports) == "completed QUIET RIVER\n"


def test_polling(ports: dict[str, str]) -> None:
    ((_, text),) = blocks("Polling")
    said = paste("", text, ports)
    assert '"state":"completed"' in said
    assert '"text":"QUIET RIVER"' in said
    assert "event: finished" in said


def test_bulk_files(ports: dict[str, str], tmp_path: Path) -> None:
    ((_, text),) = blocks("Bulk files")
    said = paste("", text, ports, tmp_path)
    assert "completed" in said
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in answers]
    assert sorted(texts) == ["QUIET RIVER", "STONE BIRD"]
