"""Both sites, and a fake for tests of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from millrace import Client
from millrace.testing import FakeMillrace
from sites import MemorySite, RealSite, Site


@pytest.fixture(params=["redis", "memory"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    site = MemorySite() if request.param == "memory" else RealSite(request.getfixturevalue("redis_url"))
    yield site
    site.close()


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    with site.client() as client:
        yield client


@pytest.fixture
def fakes() -> Iterator[Callable[..., FakeMillrace]]:
    """Makes fakes that are closed afterwards."""
    made: list[FakeMillrace] = []

    def make(*args: object, **named: object) -> FakeMillrace:
        made.append(FakeMillrace(*args, **named))
        return made[-1]

    yield make
    for fake in made:
        fake.close()
