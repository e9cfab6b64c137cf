"""`millrace bench prefix` on the demo model: groups are what they say, and its counts add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from millrace_bench.cli import app
from millrace_bench.prefix_bench import Cell, cells, measure
from millrace_bench.results import ENGINE, UNGROUPED, load_all
from millrace_kernels import PlanShape
from millrace_worker import config
from millrace_worker.engine import shared_runs
from millrace_worker.engine.engine import Engine
from stand_in_vllm import write_vllm

SMALL = ["--model", "demo", "--own", "5", "--answer", "12", "--repeats", "1", "--tiers", "none"]


def run(*flags: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["prefix", *SMALL, *flags, "--json"])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


# Tiny tensors, for which a second thread costs more than it gives.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(config.load({"model": "demo", "device": "cpu"}).engine)


def test_a_prefix_is_computed_once_and_its_rows_say_what_was_shared() -> None:
    rows = run("--groups", "3", "--prefixes", "64", "--systems", "1,2")
    cold, cached, *groups = rows
    assert [cold["cached_tokens"], cached["cached_tokens"], cached["gpu_tokens"]] == [0, 64, 64]
    assert all(row["seconds"] > 0 and row["prompt_tokens"] == 69 for row in (cold, cached))
    by_name = {row["workload"]: row for row in groups if row["engine"] == ENGINE}
    one, two, apart = by_name["3 behind 64"], by_name["2 x 3 behind 64"], by_name["3 of 69 that share nothing"]
    assert (one["requests"], one["cached_tokens"], one["computed_tokens"]) == (3, 2 * 64, 64 + 3 * 5)
    assert (two["requests"], two["cached_tokens"], two["computed_tokens"]) == (6, 4 * 64, 2 * 64 + 6 * 5)
    assert (apart["requests"], apart["cached_tokens"], apart["computed_tokens"]) == (3, 0, 3 * 69)
    assert one["prefix_computed_times"] == two["prefix_computed_times"] == 1
    for row in (one, two, apart):
        assert row["output_tokens"] == 12 * row["requests"]
        assert row["decode_tok_s"] > 0


def test_on_a_cpu_the_rows_say_that_nothing_is_grouped(engine: Engine) -> None:
    own, apart = measure(engine, Cell(2, 32, 1, 5, 12), 0.0, 1)
    assert (own.engine, own.failed) == (ENGINE, "")
    assert (apart.engine, apart.workload, apart.output_tokens) == (UNGROUPED, own.workload, 0)
    assert apart.failed == "grouping is off on cpu: both would be the same"


def test_one_engine_measures_with_shared_runs_and_without(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan of a GPU, which attention on a CPU does not look at."""
    heads, kv_heads = engine.model_config.num_heads, engine.model_config.num_kv_heads
    shape = PlanShape(engine.ready.max_num_seqs, kv_heads, heads // kv_heads, 132, shared=True)
    monkeypatch.setattr(engine.runner, "_plan_shape", shape)
    monkeypatch.setattr(shared_runs, "_LEAST_SAVED_BYTES", 1)
    own, apart = measure(engine, Cell(4, 256, 1, 5, 12), 0.0, 2)
    assert [own.engine, apart.engine] == [ENGINE, UNGROUPED]
    assert own.figures["shared_steps"] >= own.figures["decode_steps"] >= 8
    assert own.figures["shared_tokens_per_step"] == 3 * 256
    assert apart.figures["shared_steps"] == 0
    assert len(own.all_seconds) == len(apart.all_seconds) == 2
    assert engine.runner.share_runs
    own, apart = measure(engine, Cell(4, 256, 0, 5, 12), 0.0, 1)
    assert own.figures["shared_steps"] == apart.figures["shared_steps"] == 0
    assert own.requests == 4


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (Cell(2, 100_000, 1, 5, 12), "a request takes 100,017 tokens"),
        (Cell(300, 16, 1, 5, 12), "room for 256 sequences, not 300"),
        (Cell(40, 1900, 0, 5, 12), "blocks of 16 tokens"),
        (Cell(2, 32, 1, 5, 4), "the answers are too short"),
    ],
)
def test_a_cell_that_cannot_be_measured_is_a_row_that_says_why(engine: Engine, cell: Cell, words: str) -> None:
    own, apart = measure(engine, cell, 0.0, 1)
    assert words in own.failed
    assert own.failed == apart.failed
    # One that shares its blocks fits where the same without sharing does not.
    assert Cell(40, 1900, 1, 5, 12).why_not(engine) == ""


def test_other_engines_get_the_jobs_of_chosen_cells_and_all_rows_are_saved(tmp_path: Path) -> None:
    site, record = write_vllm(tmp_path / "site"), tmp_path / "record"
    flags = ["--groups", "2,3", "--prefixes", "32", "--systems", "1", "--vs", "vllm", "--vs-cells", "3x32x1"]
    arguments = json.dumps({"record": str(record)})
    results = ["--save", "--results-dir", str(tmp_path / "results")]
    rows = run(*flags, "--vs-pythonpath", str(site), "--vs-args", arguments, *results)
    (peer,) = (row for row in rows if row["engine"] == "vllm")
    (own,) = (row for row in rows if row["engine"] == ENGINE and row["workload"] == peer["workload"])
    assert peer["failed"] == ""
    assert peer["workload"] == "3 behind 32"
    assert [peer[key] for key in ("requests", "prompt_tokens", "output_tokens")] == [3, 3 * 37, 3 * 12]
    assert [own[key] for key in ("requests", "prompt_tokens", "output_tokens")] == [3, 3 * 37, 3 * 12]
    asked = json.loads(record.read_text().splitlines()[-1])
    assert asked["prompts"] == [job.prompt for job in Cell(3, 32, 1, 5, 12).jobs(own_vocabulary())]
    (saved,) = load_all(tmp_path / "results")
    assert saved.what == "prefix-vs-vllm"
    assert [(row.engine, row.workload) for row in saved.rows] == [(row["engine"], row["workload"]) for row in rows]


def own_vocabulary() -> int:
    from millrace_worker.model_path import resolve_model
    from millrace_worker.models.config import load_config

    return load_config(resolve_model("demo")).vocab_size


def test_the_tables_have_a_line_for_each_group() -> None:
    done = CliRunner().invoke(app, ["prefix", *SMALL, "--groups", "2", "--prefixes", "32", "--systems", "1"])
    assert done.exit_code == 0, done.output
    for words in ("2 behind 32", "2 of 37 that share nothing", "1.00 times", "first token behind 32, gpu", "commit"):
        assert words in done.stdout


def test_cells_are_all_combinations_and_those_that_share_nothing() -> None:
    assert [cell.key for cell in cells([4, 8], [32, 64], [1, 2], 5, 12)] == [
        "4x32x1", "8x32x1", "4x64x1", "8x64x1", "4x32x2", "8x32x2", "4x64x2", "8x64x2", "4x32x0", "8x32x0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--groups", "4,x"], "--groups is '4,x'"),
        (["--systems", "0"], "numbers from 1 on"),
        (["--tiers", "cpu,tape"], "--tiers is 'cpu,tape'; there are cpu, disk, s3, and none"),
        (["--tiers", "disk,s3", "--s3-cache", "bucket"], "must be s3://bucket/prefix"),
        (["--vs", "sglang"], "vllm and transformers, not 'sglang'"),
        (["--vs", "vllm", "--vs-cells", "5x5x5"], "4x512x1"),
        (["--vs", "vllm", "--vs-args", "[1]"], "a JSON object"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["prefix", "--model", "demo", *flags])
    assert done.exit_code == 1
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_where_nothing_could_be_measured_the_exit_code_says_so() -> None:
    flags = ["--groups", "4", "--prefixes", "4000", "--systems", "1", "--tiers", "none"]
    done = CliRunner().invoke(app, ["prefix", "--model", "demo", *flags])
    assert done.exit_code == 1
    assert "this engine serves 2,048" in " ".join(done.stdout.split())
