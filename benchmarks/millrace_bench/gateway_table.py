"""The figures of `millrace bench gateway` beside what they should be."""

from __future__ import annotations

from typing import Any

from .figures_table import show_figures
from .gateway_bench import TARGETS

#: Name of a figure, and what a reader calls it.
_ROWS = {
    "client_submit_p50_ms": "submit, client alone: p50, ms",
    "http_submit_p50_ms": "submit, HTTP: p50, ms",
    "http_submit_p99_ms": "submit, HTTP: p99, ms",
    "submit_over_client_ms": "submit, HTTP over client: p50, ms",
    "client_first_p50_ms": "first token, client alone: p50, ms",
    "http_first_p50_ms": "first token, HTTP: p50, ms",
    "first_token_over_client_ms": "first token, HTTP over client: p50, ms",
    "submits_per_s": "submits a second",
    "submits_p99_ms": "  their p99, ms",
    "submits_cpu": "  cores used by the gateway",
    "polls_p50_ms": "end of a job to long-polling client: p50, ms",
    "polls_p99_ms": "end of a job to long-polling client: p99, ms",
    "polls_count": "  answers",
    "streams_p50_ms": "event to streaming client: p50, ms",
    "streams_p99_ms": "event to streaming client: p99, ms",
    "streams_count": "  events",
    "waiting_cpu": "  cores used by the gateway",
    "open_connections": "idle connections",
    "kib_per_connection": "  memory of each, KiB",
    "open_submit_p50_ms": "  submit beside them: p50, ms",
    "open_submit_p99_ms": "  submit beside them: p99, ms",
    "mixed_count": "requests of all kinds",
    "mixed_per_s": "  a second",
    "rss_mib": "  memory after them, MiB",
    "rss_growth_mib": "  growth over them, MiB",
    "streams_left": "streams left at the end",
    "connections_left": "connections left at the end",
    "redis_left": "connections to Redis left at the end",
}


def show(found: dict[str, Any], environment: dict[str, str]) -> None:
    """Prints them."""
    show_figures("Millrace, gateway: one process", _ROWS, TARGETS, found, environment)
