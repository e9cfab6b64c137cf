"""The one reader of the producer's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

from millrace_schemas.telemetry import wants_traces

REDIS_URL_VARIABLE = "MILLRACE_REDIS_URL"
DEFAULT_REDIS_URL = "redis://localhost:6379/0"


def redis_url(flag: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The Redis that commands use: the flag, else MILLRACE_REDIS_URL, else the local default."""
    environ = os.environ if environ is None else environ
    return flag or environ.get(REDIS_URL_VARIABLE) or DEFAULT_REDIS_URL


def traceparent(environ: Mapping[str, str] | None = None) -> str | None:
    """TRACEPARENT, by which whoever starts a command says to which trace it belongs."""
    environ = os.environ if environ is None else environ
    return environ.get("TRACEPARENT")


def traces_wanted(environ: Mapping[str, str] | None = None) -> bool:
    """Whether OpenTelemetry's own variables ask for traces. Raises TracingNotPossible."""
    return wants_traces(os.environ if environ is None else environ)
