"""A real Chromium before a real gateway. Every page is watched: it has no error, and asks nobody but the gateway."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from chromium import MISSING, find_chromium, launch
from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from millrace.embedded import EmbeddedRedis
from millrace_schemas import QueueKeys
from watched import QUICK, Open, Watch


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not of the session: while Playwright runs, asyncio.run fails in this thread, and other tests need it."""
    if find_chromium() is None:
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """Another than that of all other tests: the gateway's connections stay."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def gateway(redis_url: str) -> Iterator[GatewayServer]:
    """Of each test its own, as its plots remember; before an empty Redis."""
    with GatewayServer(redis_url, QUICK) as server:
        yield server


@pytest.fixture
def url(gateway: GatewayServer, redis_url: str) -> str:
    """The page's; "demo" is registered."""
    register(redis_url)
    return f"{gateway.url}/"


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, protocol=2) as connection:
        yield connection


@pytest.fixture
def keys() -> QueueKeys:
    return QueueKeys("demo")


@pytest.fixture
def worker(redis_url: str) -> Iterator[FakeWorker]:
    with FakeWorker(redis_url) as worker:
        yield worker


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def open_page(browser: Browser, watch: Watch, gateway: GatewayServer) -> Iterator[Open]:
    """Opens a page in a context of its own, given Playwright's options of one; closed before the gateway is."""
    contexts: list[BrowserContext] = []

    def open_page(url: str, **options: object) -> Page:
        contexts.append(browser.new_context(**options))  # type: ignore[arg-type]
        contexts[-1].set_default_timeout(15_000)
        page = contexts[-1].new_page()
        watch.follow(page)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    watch.check()
