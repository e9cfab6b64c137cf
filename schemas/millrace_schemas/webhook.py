"""What a URL must be to be told of a job's end. Whether its host may be reached is decided when it is."""

from __future__ import annotations

from urllib.parse import urlsplit

from .errors import InvalidRequest

MAX_WEBHOOK_URL = 2048


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
