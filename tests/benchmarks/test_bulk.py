"""The benchmark of bulk files, with so few lines that its figures mean nothing."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from millrace_bench.bulk_bench import TARGETS
from millrace_bench.bulk_table import show
from millrace_bench.cli import app

ALONE = ["--lines", "600", "--line-bytes", "400", "--demo-lines", "0", "--seconds", "0"]


def test_the_part_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = CliRunner().invoke(app, ["bulk", *ALONE, "--json"])
    assert found.exit_code == 0, found.output
    figures = json.loads(found.stdout)
    assert (figures["lines"], figures["line_bytes"]) == (600, 400)
    assert figures["file_mb"] == 0.2
    for name in ("validated_per_s", "lines_per_s", "bulk_peak_mib", "redis_peak_mib", "bulk_cpu_us_per_line"):
        assert figures[name] > 0, name
    assert figures["commit"]
    show(figures, {"python": figures["python"]})
    table = capsys.readouterr().out
    measured = [name for name in TARGETS if name in figures]
    assert table.count("met") + table.count("MISSED") == len(measured)
