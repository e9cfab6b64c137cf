"""A Chromium of this machine, driven by Playwright, which has no browser of its own here."""

from __future__ import annotations

import os
import shutil

from playwright.sync_api import Browser, Playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"no {', '.join(_NAMES)} on PATH; install Google Chrome, or on Debian: apt-get install chromium"


def find_chromium() -> str | None:
    """Where it is; None when there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def launch(playwright: Playwright) -> Browser:
    """Headless, quiet on the network, with as few processes as may be. Raises FileNotFoundError."""
    path = find_chromium()
    if path is None:
        raise FileNotFoundError(MISSING)
    flags = (
        "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
        "--disable-sync --in-process-gpu --renderer-process-limit=1"
    )
    # Chromium's sandbox refuses to run for root.
    return playwright.chromium.launch(executable_path=path, args=flags.split(), chromium_sandbox=os.geteuid() != 0)
