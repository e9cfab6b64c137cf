"""Fixtures for tests of code that uses Millrace; pytest loads this module in every environment that has Millrace.

It lies outside the package and imports it only when a fixture is used, so that other test runs pay nothing, and
coverage, which starts later than plugins are loaded, sees the package's imports.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from millrace import AsyncClient, Client
    from millrace.testing import FakeMillrace


@pytest.fixture
def millrace_fake() -> Iterator[FakeMillrace]:
    """Queues in memory that echo each prompt; set its `answers`, `delay` or `manual`, or override the fixture."""
    from millrace.testing import FakeMillrace

    with FakeMillrace() as fake:
        yield fake


@pytest.fixture
def millrace_client(millrace_fake: FakeMillrace) -> Client:
    """A blocking client of `millrace_fake`."""
    return millrace_fake.client()


@pytest.fixture
def millrace_async_client(millrace_fake: FakeMillrace) -> AsyncClient:
    """An asynchronous client of `millrace_fake`, for any event loop."""
    return millrace_fake.async_client()
