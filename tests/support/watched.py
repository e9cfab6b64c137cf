"""What a page in a browser does besides showing itself."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page

from millrace.gateway import GatewaySettings

#: Of a gateway whose page is up to date soon.
QUICK = GatewaySettings(look_every=0.2, page_every=0.3)
#: Opens a page.
Open = Callable[..., Page]

_TELL_VIOLATIONS = """
addEventListener("securitypolicyviolation", (e) => console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`));
"""


class Watch:
    """Collects from every page that it follows, from before its first request."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.urls: list[str] = []
        #: HTTP errors that a test brings about; a browser tells of each as an error.
        self.expected_statuses: set[int] = set()
        #: The same of requests that have no answer.
        self.expected_failures = False

    def follow(self, page: Page) -> None:
        page.add_init_script(_TELL_VIOLATIONS)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self.urls.append(request.url))

    def check(self) -> None:
        assert not self.problems, "\n".join(self.problems)
        origins = {urlsplit(url).netloc.rpartition("@")[2] for url in self.urls if not url.startswith("data:")}
        assert len(origins) <= 1, origins

    def _note(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        if any(f"the server responded with a status of {status} " in message.text for status in self.expected_statuses):
            return
        if self.expected_failures and "Failed to load resource: net::ERR_" in message.text:
            return
        self.problems.append(f"{message.type}: {message.text}")
