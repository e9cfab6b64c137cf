"""The gateway's log, which can have a line for each request. No prompt or answer is ever in it."""

from __future__ import annotations

import logging

from millrace import logs

#: Of requests, one line each, with fields as `extra`.
access_log = logging.getLogger("millrace.access")


def configure(level: str, form: str) -> None:
    """As `millrace.logs.configure`."""
    logs.configure(level, form)
    # Whoever asks for the access log wants it at any level.
    access_log.setLevel(logging.INFO)
