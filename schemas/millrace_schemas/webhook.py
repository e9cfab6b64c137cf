"""Webhooks: what a URL must be to be told of a job's end, and how far that has come.

Whether its host may be reached is decided when it is called.
"""

from __future__ import annotations

from enum import StrEnum
from urllib.parse import urlsplit

import msgspec

from .errors import InvalidRequest

MAX_WEBHOOK_URL = 2048


class WebhookState(StrEnum):
    #: No gateway has called yet, or one that stopped gave it back.
    PENDING = "pending"
    #: A gateway calls right now, or has died while it did.
    SENDING = "sending"
    #: A call failed; another one follows.
    RETRYING = "retrying"
    DELIVERED = "delivered"
    #: Given up: the last call failed, or the receiver said that it wants no more.
    FAILED = "failed"


class WebhookRecord(msgspec.Struct, frozen=True):
    """How far the webhook of a job has come."""

    state: str = WebhookState.PENDING
    #: Calls so far.
    attempts: int = 0
    #: Why the last one failed.
    error: str | None = None


def check_webhook(url: str) -> None:
    """Raises InvalidRequest unless `url` is an absolute http(s) URL of printable ASCII, without user and fragment."""
    try:
        parts = urlsplit(url)
        usable = (
            len(url) <= MAX_WEBHOOK_URL
            and all("!" <= character <= "~" for character in url)
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and "@" not in parts.netloc
            and "#" not in url
        )
    except ValueError:
        usable = False
    if not usable:
        raise InvalidRequest(
            f"webhook is a URL like https://example.com/hooks of at most {MAX_WEBHOOK_URL} ASCII characters, "
            f"without user name and fragment, not {url[:80]!r}",
            param="webhook",
        )
