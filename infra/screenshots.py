"""Makes the pictures of the status page in docs/images: real jobs and bulk files, through a real worker with the demo
model.

    .venv/bin/python infra/screenshots.py

Needs Chromium (Debian: apt-get install chromium) and, as the plots show ten minutes, ten minutes; `--minutes 1` is
enough to try it. It starts a Redis, a worker and a gateway of its own on free ports and stops them again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import structlog  # noqa: E402
from playwright.sync_api import Browser, sync_playwright  # noqa: E402

from bulk_parts import Batches, BulkThread, chat_line, written  # noqa: E402
from chromium import launch  # noqa: E402
from gateway_server import GatewayServer  # noqa: E402
from millrace import AsyncClient  # noqa: E402
from millrace.bulk.settings import BulkSettings  # noqa: E402
from millrace.demo_tasks import PROMPT_OF_TASK, make_example, system_prompt  # noqa: E402
from millrace.demo_worker import MODEL, DemoWorker  # noqa: E402
from millrace.embedded import EmbeddedRedis  # noqa: E402
from millrace.termination import terminated_as_exit  # noqa: E402

IMAGES = ROOT / "docs" / "images"
#: Longest file, in bytes.
LIMIT = 300_000
#: name -> how the page is looked at
VIEWS: dict[str, dict[str, Any]] = {
    "status-light": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"},
    "status-dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "status-phone": {"viewport": {"width": 375, "height": 812}, "color_scheme": "light"},
}


#: Lines of the bulk file that is under way in the pictures, and seconds that it has been by then.
BULK_LINES, BULK_SECONDS = 20_000, 45.0


class Load:
    """Jobs of two lanes until `stop`: a few people who read each answer, bursts of a batch, and jobs that fail."""

    def __init__(self, url: str):
        self._url = url
        self._random = Random(1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with AsyncClient(self._url, MODEL) as client:
            await self._fail(client)
            await asyncio.gather(*(self._ask(client) for _ in range(3)), self._burst(client))

    async def _ask(self, client: AsyncClient) -> None:
        while not self._stop.is_set():
            await (await client.submit(**self._job())).wait(timeout=120)
            await asyncio.sleep(self._random.uniform(0.5, 3.0))

    async def _burst(self, client: AsyncClient) -> None:
        while not self._stop.is_set():
            # More than a worker takes at once, so that some wait.
            short = {"lane": "batch", "sampling": {"max_tokens": 4}}
            jobs = [{**self._job(), **short} for _ in range(self._random.randint(320, 400))]
            for job in await client.submit_many(jobs):
                await job.wait(timeout=600)
                if self._stop.is_set():
                    return
            await asyncio.sleep(self._random.uniform(20.0, 60.0))

    async def _fail(self, client: AsyncClient) -> None:
        """Jobs that a worker has to refuse."""
        await client.submit("too long " * 2_000)
        await client.submit("hello", lane="batch", deadline=timedelta(milliseconds=1))

    def _job(self) -> dict[str, Any]:
        task = self._random.choice(list(PROMPT_OF_TASK))
        example = make_example(self._random, task, split="held_out")
        return {"system": system_prompt(task), "prompt": example.user, "sampling": {"max_tokens": 48}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the status page in docs/images.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long jobs run before the pictures are taken")
    parser.add_argument("--output", type=Path, default=IMAGES, help="folder for the pictures (default: docs/images)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    options.output.mkdir(parents=True, exist_ok=True)
    with (
        terminated_as_exit(),
        tempfile.TemporaryDirectory(prefix="millrace-screenshots-") as directory,
        EmbeddedRedis() as redis,
        DemoWorker(redis.url, Path(directory) / "worker.log") as worker,
        GatewayServer(redis.url) as gateway,
        BulkThread(redis.url, BulkSettings(flush_seconds=2.0, window=512)),
    ):
        asyncio.run(until_served(redis.url, worker))
        load = Load(redis.url)
        load.start()
        print(f"{options.minutes:g} minutes of jobs; the page is at {gateway.url}/", flush=True)
        try:
            bulk_file(redis.url, directory, "reviews.jsonl", 300)
            time.sleep(max(0.0, options.minutes * 60 - BULK_SECONDS))
            bulk_file(redis.url, directory, "orders-2026-11.jsonl", BULK_LINES)
            time.sleep(BULK_SECONDS)
            with sync_playwright() as playwright:
                take_all(launch(playwright), gateway.url, options.output)
        finally:
            load.stop()


def bulk_file(url: str, directory: str, name: str, lines: int) -> None:
    """Hands in a file of so many prompts of the demo's."""
    random = Random(lines)
    made = (make_example(random, random.choice(list(PROMPT_OF_TASK)), split="held_out").user for _ in range(lines))
    texts = (chat_line(f"row-{n}", text, MODEL, max_tokens=4) for n, text in enumerate(made))
    Batches(url).make(written(f"{directory}/{name}", texts), f"{directory}/out")


async def until_served(url: str, worker: DemoWorker) -> None:
    """Raises WorkerDied."""
    async with AsyncClient(url) as client:
        while not await client.models():
            worker.check("before it was ready")
            await asyncio.sleep(0.2)


def take_all(browser: Browser, url: str, output: Path) -> None:
    task = min(PROMPT_OF_TASK, key=lambda name: len(system_prompt(name)))
    question = make_example(Random(3), task, split="held_out").user
    for name, view in VIEWS.items():
        page = browser.new_page(**view)
        page.goto(url)
        page.get_by_label("System prompt").fill(system_prompt(task))
        page.get_by_label("Prompt", exact=True).fill(question)
        page.get_by_role("button", name="Send").click()
        page.get_by_text("tokens in").wait_for(timeout=120_000)
        path = output / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        page.close()
        size = path.stat().st_size
        print(f"{path} {size:,} bytes")
        if size > LIMIT:
            sys.exit(f"{path.name} is longer than {LIMIT:,} bytes")


if __name__ == "__main__":
    main()
