"""The gateway's log, on stderr: lines for people in a terminal, JSON elsewhere. No prompt or answer is ever in it."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

#: Of requests, one line each, with fields as `extra`.
access_log = logging.getLogger("millrace.access")


def configure(level: str, form: str) -> None:
    """Sets up logging for this process; `form` is json, console, or auto: console in a terminal."""
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        # Tracebacks without the values of variables: those may be prompts.
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        last: list[Any] = [structlog.processors.ExceptionRenderer(transformer), structlog.processors.JSONRenderer()]
    else:
        last = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Whoever asks for the access log wants it at any level.
    access_log.setLevel(logging.INFO)
