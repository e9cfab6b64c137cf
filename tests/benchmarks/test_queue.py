"""The benchmark of queues, with so few jobs that its figures mean nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from millrace_bench.cli import app
from millrace_bench.queue_bench import SYSTEMS
from millrace_bench.queue_peers import program
from millrace_bench.queue_table import over_best, show

FEW = ["--jobs", "40", "--deadline", "60"]


def measured(*arguments: str, exit_code: int = 0) -> list[dict[str, Any]]:
    found = CliRunner().invoke(app, ["queue", *FEW, *arguments, "--json"])
    assert found.exit_code == exit_code, found.output
    return [json.loads(line) for line in found.stdout.splitlines()]


def script(path: Path, *lines: str) -> Path:
    """A program that stands for a Python: `$3` is "produce" or "work"."""
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return path


# A setting of each system, and both lanes of ours.
@pytest.mark.parametrize("system", ["millrace", "millrace-batch", "rq", "taskiq-stream", "celery", "arq"])
def test_every_result_is_read_and_right(system: str) -> None:
    (row,) = measured("--systems", system)
    if system == "arq" and "problem" in row:
        assert row["problem"] == f"not installed; run: {SYSTEMS['arq'].install}"
        return
    assert (row["jobs"], row["right"]) == (40, 40), row
    for rate in ("enqueue_per_s", "worker_per_s", "read_per_s", "jobs_per_s"):
        assert row[rate] > 0, rate
    assert set(row["cpu_us"]) == {"producer", "worker", "redis"}
    assert "not installed" not in row["versions"].values()
    assert row["settings"]
    assert row["delivery"]
    assert row["commit"]


def test_a_system_that_is_not_installed_is_named_with_how_to_get_it(tmp_path: Path) -> None:
    """By the Python of an environment that has nothing."""
    bare = script(tmp_path / "python", f'exec {sys.executable} -S "$@"')
    pythons = [word for name in ("rq", "arq", "taskiq", "celery") for word in ("--python", f"{name}={bare}")]
    rows = measured("--systems", "rq,arq,taskiq,celery", *pythons)
    assert [row["problem"] for row in rows] == [
        f"not installed; run: {SYSTEMS[name].install}" for name in ("rq", "arq", "taskiq", "celery")
    ]


def test_a_system_that_hangs_is_ended_and_quoted(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    hangs = script(tmp_path / "python", f'sleep 600 & echo "$$ $!" >> {pids}', "echo I wait for $3", "wait")
    (row,) = measured("--systems", "rq", "--python", f"rq={hangs}", "--deadline", "2")
    assert row["problem"].startswith("no end after 2 s.")
    assert "Its producer said: I wait for produce" in row["problem"]
    assert "Its worker said: I wait for work" in row["problem"]
    assert len(pids.read_text().split()) == 4
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_a_worker_that_ends_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a Python may be named from where one stands."""
    monkeypatch.chdir(tmp_path)
    ends = script(
        tmp_path / "python", f'[ "$3" = produce ] && exec {sys.executable} "$@"', "echo no such pool", "exit 7"
    )
    (row,) = measured("--systems", "rq", "--python", f"rq={ends}")
    assert row["problem"].startswith("its worker ended with exit code 7.")
    assert "Its worker said: no such pool" in row["problem"]


def test_millrace_without_figures_is_a_failure(tmp_path: Path) -> None:
    ends = script(tmp_path / "python", "exit 7")
    (row,) = measured("--systems", "millrace", "--python", f"millrace={ends}", exit_code=1)
    assert "exit code 7" in row["problem"]


class Swapped:
    """Mixes up the first two answers."""

    packages = ()

    def enqueue(self, texts: Sequence[str]) -> list[Any]:
        return list(texts)

    def result_keys(self, handles: Sequence[Any]) -> list[str]:
        return []

    def read(self, handles: Sequence[Any]) -> list[str]:
        return [handles[1], handles[0], *handles[2:]]

    def work(self) -> None: ...


def test_answers_are_compared_with_what_was_asked(tmp_path: Path) -> None:
    found = program.produce(Swapped(), "", tmp_path, 10, program.BESIDE)
    assert (found["answers"], found["right"]) == (10, 8)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "jobs": 9, "right": 9, "settings": "as it comes", "delivery": "at least once", "versions": {"x": "1"},
        "enqueue_per_s": 1, "worker_per_s": 2, "read_per_s": 3, "load": 1.5,
        "cpu_us": {"producer": 1, "worker": 2, "redis": 3},
    }  # fmt: skip
    rows = [
        {"system": "millrace", "title": "Millrace", "jobs_per_s": 4000, **figures},
        {"system": "rq", "title": "RQ", "jobs_per_s": 1000, **figures},
        {"system": "arq", "title": "arq", "jobs": 9, "problem": "not installed; run: pip install arq hiredis"},
    ]
    assert over_best(rows) == 4.0
    assert over_best(rows[1:]) is None
    show(rows, {"python": "3"})
    table = capsys.readouterr().out
    assert "4 (target 3: met)" in table
    assert "arq: not installed; run: pip install arq hiredis" in table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--systems", "rq,carrots"], "names 'carrots'"),
        (["--python", "carrots=/bin/true"], "must be one of arq, celery, millrace, rq, taskiq"),
        (["--python", "rq=/no/such/python"], "/no/such/python is no program that can be run"),
    ],
)
def test_refusals(arguments: list[str], words: str) -> None:
    found = CliRunner().invoke(app, ["queue", *arguments])
    assert found.exit_code == 1
    assert words in found.output
