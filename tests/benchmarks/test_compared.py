"""`millrace bench throughput` beside other engines and through Redis, as a program without entry points runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from millrace_bench.comparison import Bench
from millrace_bench.redis_bench import run_through_redis
from millrace_bench.workloads import Job
from stand_in_vllm import write_vllm
from tiny_models import CONFIGS

HEAD = list(range(10, 50))
JOBS = [Job([*HEAD, 50 + i], 5 + i % 3) for i in range(12)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without weights and without a tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({**CONFIGS["qwen3"].to_dict(), "vocab_size": 500}))
    return directory


def test_all_engines_in_one_run(tmp_path: Path, tiny: Path) -> None:
    workload = tmp_path / "jobs.jsonl"
    lines = [json.dumps({"prompt_token_ids": job.prompt, "max_tokens": job.max_tokens}) for job in JOBS]
    workload.write_text("\n".join(lines) + "\n")
    site, results = write_vllm(tmp_path / "site"), tmp_path / "results"
    command = [
        *(sys.executable, "-m", "millrace_bench", "throughput", "--model", str(tiny), "--load-format", "dummy"),
        *("--workload", str(workload), "--repeats", "1", "--through-redis"),
        *("--vs", "vllm,transformers", "--vs-first", "--vs-pythonpath", str(site)),
        *("--save", "--results-dir", str(results), "--commit", "abc", "--json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["engine"] for row in rows] == ["vllm", "transformers", "millrace", "millrace-redis"]
    for row in rows:
        assert (row["failed"], row["share"], row["workload"]) == ("", 1.0, "jobs.jsonl")
        assert (row["requests"], row["prompt_tokens"], row["output_tokens"]) == (12, 12 * 41, 72)
        assert row["output_tok_s"] == pytest.approx(72 / row["seconds"], rel=0.01)
        assert row["commit"] == "abc"
    # As the engine alone: the common beginning is computed once.
    assert rows[2]["cached_tokens"] == rows[3]["cached_tokens"] == 11 * 32
    (file,) = results.iterdir()
    saved: dict[str, Any] = json.loads(file.read_text())
    assert [row["engine"] for row in saved["rows"]] == [row["engine"] for row in rows]
    assert saved["engines"]["vllm"]["vllm"] == "0.0.7"
    assert saved["model"] == "tiny"
    assert str(tiny) not in file.read_text()


def bench(directory: Path, jobs: list[Job], **flags: Any) -> Bench:
    given = {"model": str(directory), "load_format": "dummy", **flags}
    return Bench(directory, "dummy", 0.6, 2, given, 512, [Job([5], 1)], [("jobs", jobs)])


def test_no_run_through_redis_finds_the_tokens_of_an_earlier_one(tiny: Path) -> None:
    (row,) = run_through_redis(bench(tiny, JOBS), 60.0, 500, lambda words: None)
    assert row.failed == ""
    assert len(row.all_seconds) == 2
    assert row.figures == {"cached_tokens": 11 * 32}


@pytest.mark.parametrize(
    ("jobs", "flags", "words"),
    [
        (JOBS, {"gpu_memory_utilization": 7}, "--gpu-memory-utilization=7.0 must lie in"),
        ([Job([5], 600)], {}, "takes 512 tokens of prompt and answer together"),
    ],
)
def test_what_cannot_go_through_redis_is_a_row(tiny: Path, jobs: list[Job], flags: dict[str, Any], words: str) -> None:
    (row,) = run_through_redis(bench(tiny, jobs, **flags), 60.0, 500, lambda words: None)
    assert words in row.failed
    assert Path(row.log).exists()
