"""The page before a real worker process with the demo model: its own heartbeats, answers and failures."""

from __future__ import annotations

import re
import time
from pathlib import Path
from random import Random

from playwright.sync_api import expect

from gateway_server import GatewayServer
from millrace import Client
from millrace.demo_tasks import make_example, system_prompt
from millrace.demo_worker import DemoWorker
from watched import Open, Watch


def test_a_prompt_and_what_it_leaves_behind(
    open_page: Open, gateway: GatewayServer, redis_url: str, tmp_path: Path, watch: Watch
) -> None:
    watch.expected_statuses = {400}
    example = make_example(Random(3), "rewording", split="held_out")
    with DemoWorker(redis_url, tmp_path / "worker.log") as worker, Client(redis_url) as client:
        limit = time.monotonic() + 60
        while not client.models():
            worker.check("before it was ready")
            assert time.monotonic() < limit
            time.sleep(0.1)
        page = open_page(f"{gateway.url}/")
        send = page.get_by_role("button", name="Send")
        page.get_by_label("System prompt").fill(system_prompt("rewording"))
        for _ in range(2):
            page.get_by_label("Prompt", exact=True).fill(example.user)
            send.click()
            expect(page.locator("#told")).to_have_text(re.compile("tokens in"), timeout=20_000)
            assert page.locator("#answer").inner_text().strip() != ""
        page.get_by_label("Prompt", exact=True).fill("too long " * 2000)
        send.click()
        expect(page.locator("#told.bad")).to_have_text(re.compile("No answer: .*2048"))
        failure = page.locator("#failures tbody tr")
        expect(failure).to_contain_text("context_length_exceeded")
        expect(failure.locator(".job")).to_contain_text("demo-")
        cells = page.locator("#workers tbody td")
        # The second time the cache had most of the prompt.
        expect(cells.nth(6)).to_have_text(re.compile(r"^[1-9]\d?%$"))
        expect(cells.nth(7)).to_have_text("3")
        for title in ("Time to first token", "Time to whole answer"):
            expect(page.locator("figure", has_text=title)).to_contain_text(re.compile(r"interactive: p50 [\d.]+ m?s"))
        expect(page.locator("figure", has_text="Throughput")).to_contain_text(re.compile("at most [1-9]"))
