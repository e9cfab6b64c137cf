"""Requests that failed."""

from __future__ import annotations


class Refused(Exception):
    """A request that failed: `reason` is a word for a counter, `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail
