"""`millrace bench host`: its workloads are what they say, and its figures add up."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from millrace_bench import host_bench
from millrace_bench.cli import app


def test_the_phases_of_both_workloads_add_up_to_a_step() -> None:
    done = CliRunner().invoke(app, ["host", "--sequences", "1,40", "--steps", "20", "--repeats", "1", "--json"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["workload"], row["sequences"]) for row in rows] == [
        ("decode", 1), ("decode", 40), ("churn", 1), ("churn", 40),
    ]  # fmt: skip
    for row in rows:
        phases = [row[name] for name in ("receive", "schedule", "inputs", "launch", "complete", "report")]
        assert all(phase > 0 for phase in phases[1:])
        assert sum(phases) == pytest.approx(row["total"], rel=0.5)
        assert row["total"] <= row["p99"] <= row["largest"]


def test_a_churn_keeps_its_number_of_sequences() -> None:
    loop = host_bench._loop(60)
    arrivals = host_bench._arrivals("churn", 60, 300)
    due, ended, sizes = 60, 0, []
    for _ in range(300):
        for _ in range(due):
            loop.add(next(arrivals))
        output = loop.step()
        due = len(output.finished)
        ended += due
        sizes.append(output.load.running)
    # An answer has about 200 tokens. What ended is seen a step late, and its place taken in the next.
    assert 60 < ended < 130
    assert min(sizes[40:]) > 54
    assert loop.scheduler.num_preemptions == 0


@pytest.mark.parametrize("flags", [["--sequences", "4,x"], ["--sequences", "0"], ["--workload", "decode,all"]])
def test_bad_input_is_one_line(flags: list[str]) -> None:
    done = CliRunner().invoke(app, ["host", *flags])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: --")
    assert "Traceback" not in done.output
