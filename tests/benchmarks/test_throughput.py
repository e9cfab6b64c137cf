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
    assert 0 < row["wait_seconds"] < row["seconds"]
    host = (row["seconds"] - row["wait_seconds"]) / row["steps"] * 1000
    assert row["host_ms_per_step"] == pytest.approx(host)
    # Every sequence is in one step for each token of its answer.
    assert row["sequences_per_step"] == pytest.approx(row["output_tokens"] / row["steps"])
    phases = [row[f"{phase}_us_per_step"] for phase in ("schedule", "inputs", "launch", "wait", "complete", "report")]
    assert all(microseconds > 0 for microseconds in phases)
    assert sum(phases) * row["steps"] / 1e6 == pytest.approx(row["seconds"], rel=0.2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "demo", "--workload", "nosuch"], "no workload"),
        (["--model", "/no/such/dir"], "/no/such/dir"),
        (["--model", "demo", "--load-format", "magic"], "load-format"),
        (["--model", "demo", "--workload", ","], "no workload is named"),
        (["--model", "demo", "--vs", "vllm,sglang"], "vllm and transformers, not 'sglang'"),
        (["--model", "demo", "--vs-args", "[1]"], "a JSON object"),
        (["--model", "demo", "--save", "--results-dir", "/proc/x"], "--results-dir /proc/x cannot be written to"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["throughput", *flags])
    assert done.exit_code == 1
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_less_context_than_the_usual_warm_up_is_enough(tmp_path: Path) -> None:
    workload = write_jobs(tmp_path / "jobs.jsonl")
    flags = ["--model", "demo", "--workload", workload, "--repeats", "1", "--max-model-len", "60", "--json"]
    done = CliRunner().invoke(app, ["throughput", *flags])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["requests"] == 12


def test_help_says_what_a_line_is_and_what_all_is() -> None:
    done = CliRunner().invoke(app, ["throughput", "--help"], env={"COLUMNS": "200"})
    words = " ".join(done.output.replace("│", " ").split())
    assert 'each line {"prompt_token_ids": [...], "max_tokens": n}' in words
    assert "all: these but mixed8k" in words
