"""docs/operating.md names the metrics, flags and commands that there are, and all metrics."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from millrace.cli import app
from millrace_worker.config import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/operating.md").read_text()
SOURCES = (
    "worker/millrace_worker/metrics.py",
    "worker/millrace_worker/cache_metrics.py",
    "producer/millrace/gateway/metrics.py",
    "producer/millrace/gateway/metrics_batches.py",
)


def test_it_has_every_metric_and_no_other() -> None:
    made = {name for path in SOURCES for name in re.findall(r'"(millrace_[a-z0-9_]+)"', (ROOT / path).read_text())}
    told = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bmillrace_[a-z0-9_]+", TEXT)}
    assert told == made
    tables = {
        name
        for line in TEXT.splitlines()
        if line.startswith("| `millrace_")
        for name in re.findall(r"`(millrace_\w+)`", line)
    }
    assert tables == made


def test_defaults_in_the_table_of_settings_are_those_of_the_worker() -> None:
    section = TEXT.split("## Sizing and knobs")[1].split("## Redis")[0]
    rows = re.findall(r"`--([a-z0-9-]+)` \(([\d.]+)(?: (s|day|MiB))?\)", section)
    assert len(rows) >= 11
    units = {"": 1, "s": 1, "day": 86_400, "MiB": 2**20}
    for name, number, unit in rows:
        assert SETTINGS[name.replace("-", "_")].default == float(number) * units[unit], name


def test_its_flags_exist() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    known = {"--" + name.replace("_", "-") for name in SETTINGS}
    for name in ("gateway", "bulk"):
        known |= {flag for parameter in commands[name].params for flag in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--model", "--name", "--operator"}
    assert set(re.findall(r"--[a-z][a-z0-9-]+", TEXT)) <= known
