"""The prefix cache of a real worker shares nothing between tenants, or salts, that a gateway lets in."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import openai
import pytest

from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace import Client
from millrace.embedded import EmbeddedRedis
from millrace.gateway import GatewaySettings

# Of each test its own, as both ask the same worker.
SYSTEM = "Change the words by the rule. " * 12
OTHER_SYSTEM = "Uppercase every word. " * 20


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """Another than that of other tests, which is emptied: the gateway and the worker stay."""
    with EmbeddedRedis() as server:
        yield server.url


@pytest.fixture(scope="module")
def gateway(redis_url: str) -> Iterator[GatewayServer]:
    """Asks for keys; a worker with the demo model is behind it."""
    command = [sys.executable, "-m", "millrace_worker", "--redis-url", redis_url, "--device", "cpu"]
    with GatewayServer(redis_url, GatewaySettings(require_keys=True)) as gateway, Client(redis_url) as client:
        worker = subprocess.Popen(command)
        try:
            limit = time.monotonic() + 120
            while not client.models():
                assert worker.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.1)
            yield gateway
        finally:
            worker.terminate()
            worker.wait()


def test_equal_prompts_of_different_tenants_share_nothing(gateway: GatewayServer, redis_url: str) -> None:
    make = KeyMaker(redis_url)
    keys = {tenant: make(tenant=tenant) for tenant in ("acme", "other", "")}

    def cached(tenant: str, salt: str | None = None) -> int:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=keys[tenant], timeout=60) as ai:
            answer = ai.chat.completions.create(
                model="demo",
                messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": "quiet river"}],
                max_tokens=4,
                extra_body={} if salt is None else {"cache_salt": salt},
            )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    firsts = [("acme", None), ("other", None), ("", None), ("acme", "x"), ("acme", "y"), ("other", "x"), ("", "acme")]
    assert [cached(*who) for who in firsts] == [0] * len(firsts)
    again = {cached(*who) for who in firsts}
    assert len(again) == 1
    assert again.pop() > 100


def test_salts_of_the_queues_own_producers(gateway: GatewayServer, redis_url: str) -> None:
    with Client(redis_url, model="demo") as client:

        def cached(salt: str | None) -> int:
            job = client.submit(system=OTHER_SYSTEM, prompt="stone bird", sampling={"max_tokens": 4}, cache_salt=salt)
            assert job.request().cache_salt == (salt or "")
            return job.result(timeout=60).usage.cached_tokens

        assert [cached(salt) for salt in (None, "a", "b")] == [0, 0, 0]
        assert min(cached(salt) for salt in (None, "", "a", "b")) > 100
