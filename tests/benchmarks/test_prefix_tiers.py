"""`millrace bench prefix` and the tiers: where its tokens come from, and an engine that is killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from millrace_bench.cli import app
from millrace_bench.first_token import FirstToken, first_token_row
from millrace_bench.prefix_bench import Cell, params
from millrace_bench.restart_bench import RestartBench
from millrace_bench.results import ENGINE, Row
from millrace_bench.tier_bench import TierBench, chain_of
from millrace_bench.tier_options import TierOptions, parse_tiers
from millrace_bench.workloads import Job
from millrace_bench.zero_hit_bench import zero_hit_loss
from millrace_worker import config
from millrace_worker.engine.engine import Engine
from millrace_worker.frames import AddSequence
from servers import S3Server

torch.set_num_threads(1)

SMALL = ["--model", "demo", "--own", "5", "--answer", "12", "--repeats", "1", "--prefixes", "64", "--systems", "1"]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    flags = {"model": "demo", "device": "cpu", "cpu_cache_gb": 0.02, "disk_cache_dir": str(tmp_path / "disk")}
    engine = Engine(config.load(flags).engine)
    yield engine
    engine.close()


def by_tier(engine: Engine, prompt: list[int], *, marked: bool = False) -> dict[str, int]:
    engine.add(AddSequence(0, prompt, [], params(Job(prompt, 1), 0.0, 0, marked=marked)))
    found: dict[str, int] = {}
    while engine.has_work:
        for started in engine.step().started:
            found |= started.by_tier
    return found


def run(*flags: str) -> dict[str, dict[str, Any]]:
    done = CliRunner().invoke(app, ["prefix", *SMALL, *flags, "--json"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["workload"]: row for row in rows if row["engine"] == ENGINE}


def test_each_tier_has_a_row_and_what_a_killed_engine_pinned_is_read_again(s3_env: S3Server, tmp_path: Path) -> None:
    bucket = ["--tiers", "cpu,disk,s3", "--s3-cache", "s3://answers/bench", "--s3-endpoint-url", s3_env.url]
    places = ["--disk-cache-dir", str(tmp_path / "disks"), "--save", "--results-dir", str(tmp_path / "results")]
    rows = run("--groups", "2", "--cpu-cache-gb", "0.02", "--restarts", "1", *bucket, *places)
    failed = {name: row["failed"] for name, row in rows.items() if row["failed"]}
    assert set(failed) == {"copies: to the host", "copies: to the device"}
    assert all("not measured" in words for words in failed.values())

    assert rows["first token behind 64, cold"]["cached_tokens"] == 0
    for tier in ("gpu", "cpu", "disk", "s3"):
        row = rows[f"first token behind 64, {tier}"]
        assert (row["cached_tokens"], row[f"{tier}_tokens"], len(row["all_seconds"])) == (64, 64, 5)
        assert row["seconds"] > 0
    for tier in ("cpu", "disk", "s3"):
        assert rows[f"first token behind 64, {tier}"]["of_cold"] > 0
        assert 0 <= rows[f"first token behind 64, {tier} as decided"]["loaded"] <= 1

    assert rows["restart: pin of 64 resident"]["read_blocks"] == rows["restart: pin of 64 resident"]["blocks"] == 4
    assert rows["restart: first token behind 64, pinned"]["gpu_tokens"] == 64
    assert rows["restart: first token behind 64, cold"]["cached_tokens"] == 0
    assert rows["restart: ready with tiers"]["cpu_cache_gb"] == 0.02
    assert rows["nothing shared: prefill"]["with_tok_s"] > 0 < rows["nothing shared: decode"]["without_tok_s"]
    assert rows["2 behind 64"]["prefix_computed_times"] == 1, "groups are measured without tiers"

    assert list((tmp_path / "disks").iterdir()) == []
    report = ["report", "--results-dir", str(tmp_path / "results"), "--docs", str(tmp_path / "docs")]
    assert CliRunner().invoke(app, report).exit_code == 0
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "- Millrace, restart: pin of 64 resident: " in page
    assert "| first token behind 64, s3 |" in page


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--tiers", "cpu", "--cpu-cache-gb", "0"), "--tiers has cpu, but --cpu-cache-gb gives it no memory"),
        (("--tiers", "disk,s3"), "--tiers has s3, but --s3-cache names no bucket"),
        (("--tiers", "cpu,s3", "--s3-cache", "s3://b/x"), "it needs disk among --tiers"),
        (("--tiers", "disk", "--disk-cache-dir", "/proc"), "--disk-cache-dir: no directory can be made there: "),
    ],
)
def test_tiers_that_cannot_be_had_are_refused_at_once(flags: tuple[str, ...], words: str) -> None:
    found = CliRunner().invoke(app, ["prefix", "--model", "demo", "--groups", "none", *flags])
    assert found.exit_code == 1
    assert found.output.startswith("error: ")
    assert words in found.output


def test_only_a_disk_outlives_an_engine() -> None:
    rows = run("--groups", "none", "--tiers", "cpu", "--cpu-cache-gb", "0.02")
    assert not any(name.startswith("restart") for name in rows)
    assert rows["first token behind 64, cpu"]["cpu_tokens"] == 64


def test_tiers_are_named_from_the_fastest() -> None:
    wanted = TierOptions(tiers=("s3",), cpu_cache_gb=1, s3_cache="s3://bucket/x")
    assert wanted.flags(Path("x")) == {}
    assert parse_tiers("s3, cpu") == ("cpu", "s3")
    assert parse_tiers("none") == ()


def test_a_hit_of_another_tier_is_a_failed_row(engine: Engine, tmp_path: Path) -> None:
    """The bench does not know of this engine's host memory, and so does not empty it."""
    options = TierOptions(tiers=("disk",), cpu_cache_gb=0)
    rows = {row.workload: row for row in TierBench(engine, options, tmp_path / "disk", 0.0).first_tokens(64, 5)}
    row = rows["first token behind 64, disk"]
    assert row.failed == "of its prompt 64 tokens in cpu were found, not 64 tokens in disk"
    assert not rows["first token behind 64, gpu"].failed
    cold = first_token_row("x", [FirstToken(1.0), FirstToken(2.0, {"gpu": 16})], 69, expected={})
    assert cold.failed == "of its prompt 16 tokens in gpu were found, not nothing"


def test_tiers_are_emptied_forced_and_left_alone(engine: Engine) -> None:
    assert engine.tiers is not None
    switches, prompt = engine.tiers.switches, list(range(100, 165))
    by_tier(engine, prompt, marked=True)
    chain = chain_of(prompt[:64], 16)
    assert switches.wait_open(5) == []
    assert switches.wait_for("disk", chain, 5)
    assert switches.wait_for("cpu", chain, 0)
    assert not switches.wait_for("s3", chain, 0)

    engine.reset_prefix_cache()
    engine.use_tiers(False)
    assert by_tier(engine, prompt) == {}
    engine.use_tiers(True)
    engine.reset_prefix_cache()
    assert by_tier(engine, prompt) == {"cpu": 64}

    # Computing is far quicker, as far as it knows.
    for tier in ("cpu", "disk"):
        engine.tiers.costs.bytes_per_second[tier] = 1.0
    engine.tiers.costs.tokens_per_second = 1e9
    for forced, found in ((False, {}), (True, {"disk": 64})):
        engine.reset_prefix_cache()
        switches.forget("cpu")
        switches.always_load(forced)
        assert by_tier(engine, prompt) == found
    switches.forget("cpu")
    switches.forget("disk")
    engine.reset_prefix_cache()
    assert by_tier(engine, prompt) == {}
    engine.tiers.check_integrity()


def test_what_shares_nothing_is_measured_with_tiers_and_without(engine: Engine) -> None:
    prefill, decode = zero_hit_loss(engine, Cell(2, 64, 0, 5, 12), 0.0, 2)
    for row in (prefill, decode):
        assert (row.requests, row.prompt_tokens, row.output_tokens, len(row.all_seconds)) == (2, 138, 24, 2)
        assert row.figures["loss"] == pytest.approx(
            1 - row.figures["with_tok_s"] / row.figures["without_tok_s"], abs=0.01
        )
    assert engine.scheduler.tier is engine.tiers
    assert [row.failed for row in zero_hit_loss(engine, Cell(300, 64, 0, 5, 12), 0.0, 1)] == [
        "a step has room for 256 sequences, not 300"
    ] * 2


def test_an_engine_that_does_not_start_is_a_row_with_its_words(tmp_path: Path) -> None:
    options = TierOptions(tiers=("disk",), cpu_cache_gb=0, restarts=1)
    bench = RestartBench({"model": str(tmp_path / "nothing")}, options, 64, 5, 0.0, lambda words: None)
    rows: list[Row] = list(bench.rows(tmp_path / "disk"))
    assert len(rows) == 5
    assert all("nothing" in row.failed for row in rows)
