"""`millrace bench latency` on the demo model: every request has its tokens, and a sweep has a row for each setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from millrace_bench import latency
from millrace_bench.arrivals import Arrival
from millrace_bench.cli import app
from millrace_bench.workloads import Job
from millrace_worker.config import EngineConfig
from millrace_worker.engine.engine import Engine

PROMPTS = [6, 9, 140, 12]

# A second thread costs so small a model more than it gives.
torch.set_num_threads(1)


@pytest.fixture
def workload(tmp_path: Path) -> str:
    lines = [{"prompt_token_ids": [100 + i, *range(100, 99 + n)], "max_tokens": 3 + i} for i, n in enumerate(PROMPTS)]
    path = tmp_path / "jobs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def rows_of(*flags: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["latency", "--model", "demo", "--json", *flags])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(row: dict[str, Any], times: int = 2) -> None:
    """That each request was sent so many times, and that its figures go together."""
    assert row["requests"] == 4 * times
    assert row["prompt_tokens"] == times * sum(PROMPTS)
    assert row["output_tokens"] == times * (3 + 4 + 5 + 6)
    assert 0 < row["ttft_p50_ms"] <= row["ttft_p95_ms"] <= row["ttft_p99_ms"]
    assert 0 < row["itl_p50_ms"] <= row["itl_p95_ms"] <= row["itl_p99_ms"]
    assert row["itl_p99_over_p50"] == pytest.approx(row["itl_p99_ms"] / row["itl_p50_ms"], abs=0.01)
    assert row["ttft_p99_ms"] < row["e2e_p99_ms"]
    assert row["served_req_s"] == pytest.approx(4 * times / row["seconds"], rel=0.01)
    assert row["goodput_req_s"] == row["served_req_s"]
    assert row["commit"]


def test_a_row_for_each_threshold_and_rate_on_one_engine(workload: str) -> None:
    flags = ("--workload", workload, "--requests", "8", "--goodput", "ttft:1e6,itl:1e6")
    rows = rows_of(*flags, "--rates", "20,inf", "--long-prefill-token-thresholds", "0,32")
    assert [(row["long_prefill_token_threshold"], row["rate"]) for row in rows] == [
        (0, 20), (0, "inf"), (32, 20), (32, "inf"),
    ]  # fmt: skip
    for row in rows:
        check(row)
        assert row["through_redis"] is False
    assert rows[0]["seconds"] > rows[0]["arriving_seconds"] == rows[2]["arriving_seconds"] > 0


def test_through_redis_every_request_has_its_tokens_too_and_none_of_an_earlier_rate(workload: str) -> None:
    flags = ("--workload", workload, "--requests", str(len(PROMPTS)), "--goodput", "ttft:1e6,itl:1e6")
    rows = rows_of(*flags, "--rates", "20,inf", "--through-redis", "--long-prefill-token-thresholds", "32")
    assert [row["rate"] for row in rows] == [20, "inf"]
    for row in rows:
        check(row, times=1)
        assert (row["through_redis"], row["long_prefill_token_threshold"]) == (True, 32)
        assert row["cached_tokens"] == 0
    assert rows[0]["sent_late_p99_ms"] >= 0


def test_a_run_finds_nothing_of_the_one_before_in_the_cache(workload: str) -> None:
    flags = ("--workload", workload, "--requests", str(len(PROMPTS)), "--rates", "20,inf")
    assert [row["cached_tokens"] for row in rows_of(*flags)] == [0, 0]


def test_the_lines_of_a_file_are_the_requests_and_more_find_nothing_of_them(workload: str) -> None:
    (own,) = rows_of("--workload", workload, "--rates", "inf")
    assert (own["requests"], own["prompt_tokens"]) == (4, sum(PROMPTS))
    # One after the other, so that a repeated prompt would be in the cache.
    (more,) = rows_of("--workload", workload, "--rates", "20", "--requests", "16")
    assert (more["requests"], more["prompt_tokens"], more["cached_tokens"]) == (16, 4 * sum(PROMPTS), 0)


def test_how_long_the_arrivals_take_is_said_before_each_run(workload: str) -> None:
    flags = ["--workload", workload, "--rates", "20,inf", "--long-prefill-token-thresholds", "0,32", "--json"]
    done = CliRunner().invoke(app, ["latency", "--model", "demo", *flags])
    assert done.exit_code == 0, done.output
    said = [line for line in done.stderr.splitlines() if line.startswith("rate ")]
    assert [line.rpartition("about ")[0] or line for line in said] == [
        "rate 20: 4 requests over ", "rate inf: 4 requests at once",
        "rate 20, long prefill 32: 4 requests over ", "rate inf, long prefill 32: 4 requests at once",
    ]  # fmt: skip
    assert "requests over" not in done.stdout


def test_less_context_than_the_usual_warm_up_is_enough(workload: str) -> None:
    (row,) = rows_of("--workload", workload, "--rates", "inf", "--max-model-len", "160")
    assert row["requests"] == 4


@pytest.mark.parametrize("through_redis", [[], ["--through-redis"]])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workload", "nano,chat"], "it takes one here"),
        (["--workload", "all"], "it takes one here"),
        (["--workload", "nosuch"], "no workload and no file is called 'nosuch'; there are nano,"),
        (["--rates", "1,inf", "--seconds", "3"], "give --requests instead of --seconds"),
        (["--rates", "0.001", "--seconds", "1"], "no request arrives within 1 s"),
        (["--workload", "FILE"], ":1: the line is not UTF-8"),
    ],
)
def test_what_can_be_refused_is_so_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str, through_redis: list[str]
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr("millrace_worker.engine.engine.Engine.__init__", started)
    monkeypatch.setattr("millrace_bench.latency_queue.QueueWorker.__init__", started)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    given = [str(path) if flag == "FILE" else flag for flag in flags]
    done = CliRunner().invoke(app, ["latency", "--model", "demo", *given, *through_redis])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert words in done.stderr


def test_a_rate_that_cannot_be_served_is_said(workload: str) -> None:
    flags = ["--workload", workload, "--requests", "120", "--rates", "100000"]
    done = CliRunner().invoke(app, ["latency", "--model", "demo", *flags])
    assert done.exit_code == 0, done.output
    assert "rate 100000: the engine could not keep up" in done.stdout
    assert " in flight grew from 60 to 120 " in " ".join(done.stdout.split()).replace("those in", "in")


def test_arrivals_wait_for_their_time_and_not_for_the_engine() -> None:
    engine = Engine(EngineConfig(device="cpu"))
    # The first one is due in a while, the others while it is being answered.
    coming = [Arrival(due, Job([100 + n, 101, 102], 60)) for n, due in enumerate((0.2, 0.21, 0.22))]
    timelines = latency.drive(engine, coming, 0.0)
    assert all(t.sent >= t.arrival.due and t.times[0] > t.sent for t in timelines)
    assert timelines[2].sent < timelines[0].ended, "added while the first one was answered"
    assert [t.tokens for t in timelines] == [60, 60, 60]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rates", "fast"], "--rates"),
        (["--goodput", "speed:3"], "--goodput"),
        (["--long-prefill-token-thresholds", "-1"], "--long-prefill-token-thresholds"),
        (["--long-prefill-token-thresholds", "x"], "--long-prefill-token-thresholds"),
        (["--requests", "3", "--seconds", "2"], "not both"),
        (["--workload", "nosuch"], "no workload"),
        (["--load-format", "magic"], "load-format"),
        (["--load-format", "magic", "--through-redis"], "load-format"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["latency", "--model", "demo", *flags])
    assert done.exit_code == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert words in line
    assert "Traceback" not in done.output


def test_a_prompt_that_the_model_cannot_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text('{"prompt_token_ids": [5, 6], "max_tokens": 3000}\n')
    flags = ["latency", "--model", "demo", "--workload", str(path), "--requests", "1", "--rates", "inf"]
    done = CliRunner().invoke(app, flags)
    assert done.exit_code == 1
    assert "more than the 2048 that this model serves" in done.stderr
    done = CliRunner().invoke(app, [*flags, "--through-redis"])
    assert done.exit_code == 1
    assert "error: " in done.stderr
    assert "2048" in done.stderr
