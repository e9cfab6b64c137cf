"""`millrace bench throughput` on the demo model: it runs to the end, and its figures add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from millrace_bench.cli import app


def write_jobs(path: Path) -> str:
    head = list(range(100, 140))
    lines = [{"prompt_token_ids": [*head, 200 + i], "max_tokens": 5 + i % 3} for i in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_figures_add_up(tmp_path: Path) -> None:
    workload = write_jobs(tmp_path / "jobs.jsonl")
    done = CliRunner().invoke(
        app, ["throughput", "--model", "demo", "--workload", workload, "--repeats", "1", "--json"]
    )
    assert done.exit_code == 0, done.output
    (row,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert row["requests"] == 12
    assert row["prompt_tokens"] == 12 * 41
    assert row["output_tokens"] == sum(5 + i % 3 for i in range(12))
    # The common head of two full blocks is computed once.
    assert row["cached_tokens"] == 11 * 32
    assert row["output_tok_s"] == pytest.approx(row["output_tokens"] / row["seconds"], rel=0.01)
    assert all(seconds > 0 for seconds in row["host"].values())
    assert 0.5 * row["seconds"] < sum(row["host"].values()) <= row["seconds"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "demo", "--workload", "nosuch"], "no workload"),
        (["--model", "/no/such/dir"], "/no/such/dir"),
        (["--model", "demo", "--load-format", "magic"], "load-format"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["throughput", *flags])
    assert done.exit_code == 1
    assert words in done.stderr
    assert "Traceback" not in done.output
