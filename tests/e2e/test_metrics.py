"""The metrics of a worker of the demo model agree with the results that it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from millrace import Client, Sampling
from millrace.demo_tasks import PROMPT_OF_TASK, system_prompt
from millrace_schemas import Message, Request, Role
from scraped import Scraped


def requests(count: int) -> list[Request]:
    task = next(iter(PROMPT_OF_TASK))
    system = Message(Role.SYSTEM, system_prompt(task))
    return [
        Request(
            model="demo",
            messages=(system, Message(Role.USER, f"{i} apples")),
            sampling=Sampling(temperature=0.0, max_tokens=12, ignore_eos=True),
        )
        for i in range(count)
    ]


def scrape(url: str) -> Scraped:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return Scraped(answer.read().decode())


def test_figures_agree_with_results(redis_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [*(sys.executable, "-m", "millrace_worker"), "--redis-url", redis_url, "--device", "cpu"]
    with log.open("wb") as out:
        flags = ("--metrics-port", "0", "--log-format", "json", "--cpu-cache-gb", "0.05")
        worker = subprocess.Popen([*command, *flags], stderr=out)
    try:
        limit = time.monotonic() + 60
        while '"event": "serving"' not in log.read_text():
            assert worker.poll() is None, log.read_text()
            assert time.monotonic() < limit
            time.sleep(0.05)
        limit = time.monotonic() + 120
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        url = next(line["url"] for line in lines if line["event"] == "metrics")
        with Client(redis_url, model="demo") as client:
            # The first one fills the prefix cache for the others.
            results = [client.submit_many(requests(1))[0].result(timeout=60)]
            results += [job.result(timeout=60) for job in client.submit_many(requests(16)[1:])]
        page = scrape(url)
        # A result can be read a moment before its worker knows that it is written.
        while page.value("millrace_jobs_finished_total") < 16 or not page.value(
            "millrace_prefix_cache_hit_ceiling_ratio"
        ):
            assert time.monotonic() < limit
            page = scrape(url)
    finally:
        worker.terminate()
        worker.wait(30)
    usage = [result.usage for result in results]
    assert page.value("millrace_jobs_finished_total", state="completed", model="demo") == len(results) == 16
    assert page.value("millrace_generation_tokens_total") == sum(u.completion_tokens for u in usage) == 16 * 12
    assert page.value("millrace_prompt_tokens_total") == sum(u.prompt_tokens for u in usage)
    assert page.value("millrace_prefix_cache_hits_total") == sum(u.cached_tokens for u in usage) > 0
    assert page.value("millrace_prefix_cache_tier_hits_total") == page.value("millrace_prefix_cache_hits_total")
    # What came again was copied to host memory.
    assert page.value("millrace_prefix_cache_blocks", tier="cpu") > 0
    assert page.value("millrace_prefix_cache_bytes", tier="gpu") > 0
    assert 0.5 < page.value("millrace_prefix_cache_hit_ceiling_ratio") < 1
    # Each step's tokens were some sequence's, and each token that was not cached was computed, but for the last ones.
    steps = page.value("millrace_step_seconds_count")
    assert steps == page.value("millrace_batch_size_count") >= 12
    computed = sum(u.prompt_tokens - u.cached_tokens + u.completion_tokens - 1 for u in usage)
    assert page.value("millrace_iteration_tokens_sum") == computed
    assert page.value("millrace_kv_cache_usage_ratio") == 0
    assert page.value("millrace_time_to_first_token_seconds_count") == 16
