"""The figures of `millrace bench bulk` beside what they should be."""

from __future__ import annotations

from typing import Any

from .bulk_bench import TARGETS
from .figures_table import show_figures

_ROWS = {
    "lines": "lines of the file",
    "file_mb": "  MB",
    "processes": "  processes that work on it",
    "validated_per_s": "validated, lines a second",
    "lines_per_s": "submitted and collected, lines a second",
    "bulk_cpu_us_per_line": "  processor time of millrace bulk, us a line",
    "redis_cpu_s": "  processor time of Redis, s",
    "validating_s": "  validating, s",
    "working_s": "  submitting and collecting, s",
    "finalizing_s": "  joining the parts, s",
    "bulk_peak_mib": "memory of the largest process of millrace bulk, MiB",
    "redis_peak_mib": "memory of Redis at its peak, MiB",
    "demo_lines": "questions for the demo model",
    "submit_many_s": "  through submit_many, s",
    "demo_file_s": "  as a file, s",
    "over_submit_many_percent": "  the file over submit_many, %",
    "nothing_ttft_p95_ms": "first token without a model, alone: p95, ms",
    "nothing_beside_p95_ms": "  beside a file: p95, ms",
    "nothing_beside_ratio": "  times as long",
    "demo_ttft_p95_ms": "first token of the demo model, alone: p95, ms",
    "demo_beside_p95_ms": "  beside a file: p95, ms",
    "demo_beside_ratio": "  times as long",
}


def show(found: dict[str, Any], environment: dict[str, str]) -> None:
    """Prints them."""
    show_figures("Millrace, bulk files", _ROWS, TARGETS, found, environment)
