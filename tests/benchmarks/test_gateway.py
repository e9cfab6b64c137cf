"""The benchmark of the gateway end to end, with so little load that its figures mean nothing."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from millrace_bench.cli import app
from millrace_bench.figures_table import met
from millrace_bench.gateway_bench import TARGETS

SMALL = ["--seconds", "0.5", "--polls", "4", "--streams", "3", "--requests", "80", "--connections", "20"]


def test_all_parts_as_json() -> None:
    found = CliRunner().invoke(app, ["gateway", *SMALL, "--json"])
    assert found.exit_code == 0, found.output
    figures = json.loads(found.stdout)
    assert set(TARGETS) <= set(figures)
    assert figures["submits_count"] > 0
    assert figures["polls_count"] >= 4
    assert figures["streams_count"] >= 3 * 3
    assert figures["mixed_count"] >= 80
    assert figures["open_connections"] == 20
    assert (figures["streams_left"], figures["connections_left"]) == (0, 0)
    assert figures["http_submit_p50_ms"] > 0
    assert figures["commit"]


def test_what_counts_as_met() -> None:
    assert met("submits_per_s", 2000, TARGETS["submits_per_s"])
    assert not met("submits_per_s", 1999, TARGETS["submits_per_s"])
    assert met("polls_p99_ms", 100, TARGETS["polls_p99_ms"])
    assert not met("polls_p99_ms", 101, TARGETS["polls_p99_ms"])
