"""What the page shows: figures, plots and failures, as they become, with its script and without it."""

from __future__ import annotations

import re
import time

import pytest
import redis
from playwright.sync_api import Page, expect

from batch_maker import moved, new_batch, put
from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from millrace import Client, Lane, WorkerInfo
from millrace.embedded import EmbeddedRedis
from millrace_schemas import Latencies, QueueKeys, bucket_of, encode
from millrace_schemas.batch import BatchError, BatchStatus
from millrace_schemas.keys import batch_key
from watched import QUICK, Open, Watch

HOSTILE = """</td><script>alert(1)</script><img src=x onerror='alert("1")'>&amp;"""
PATHS = "figure path:not(.grid):not([d='M0 2h12'])"


def beat(raw: redis.Redis, keys: QueueKeys, name: str = "w-1", **numbers: object) -> None:
    given = {"host": "h", "pid": 1, "device": "NVIDIA H200", "started_at": 1.0, "beat_at": time.time(), **numbers}
    raw.set(keys.worker(name), encode(WorkerInfo(name=name, model="demo", **given)))  # type: ignore[arg-type]
    raw.zadd(keys.workers, {name: 1.0})


def work(raw: redis.Redis, keys: QueueKeys) -> None:
    """A worker that has just been seen, and is seen again after it has done something."""
    before = {bucket_of(0.3): 5}
    beat(raw, keys, output_tokens=1000, latencies={Lane.BATCH: Latencies(first_token=before, total=before)})
    time.sleep(0.5)
    after = {bucket_of(0.3): 9, bucket_of(3.0): 1}
    beat(
        raw, keys, running=7, waiting=5, kv_usage=0.42, finished=1234, output_tokens=56789, prompt_tokens=1000,
        cached_tokens=625, latencies={Lane.BATCH: Latencies(first_token=before, total=after)},
    )  # fmt: skip
    time.sleep(0.5)


def rows(page: Page, table: str) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator(f"#{table} tbody tr").all()]


def figure(page: Page, title: str) -> str:
    """The text of a plot."""
    return " ".join(page.locator("figure", has_text=title).inner_text().split())


@pytest.mark.parametrize("scripts", [True, False], ids=["script", "no-script"])
def test_the_figures(
    open_page: Open, url: str, redis_url: str, raw: redis.Redis, keys: QueueKeys, scripts: bool
) -> None:
    with Client(redis_url) as client:
        client.submit_many([{"prompt": "a", "lane": "batch"}] * 1203)
    work(raw, keys)
    raw.xadd(keys.failures, {"job": "demo-1", "lane": "batch", "code": "engine_failed", "reason": "out", "attempts": 2})
    page = open_page(url, java_script_enabled=scripts)
    interactive, batch = rows(page, "queues")
    assert interactive == ["demo", "interactive", "0", "0", "-", "0", "0"]
    assert batch[:4] == ["demo", "batch", "1,203", "0"]
    assert re.fullmatch(r"\d+ s", batch[4])
    ((*cells, last),) = rows(page, "workers")
    assert cells[:9] == ["w-1", "demo", "NVIDIA H200", "7", "5", "42%", "62%", "1,234", "56,789"]
    assert re.fullmatch(r"[\d,]+", cells[9])
    assert re.fullmatch(r"\d s", last)
    ((_, *failure),) = rows(page, "failures")
    assert failure == ["demo", "engine_failed", "2", "demo-1", "out"]
    assert page.locator("#summary").inner_text().startswith("1 worker, 0 in flight, 1,203 waiting")
    assert re.search(r"batch: 1,203, oldest \d+ s 2,000 1,000 0 10 min ago 5 min ago now", figure(page, "Queue depth"))
    assert re.search(r"output tokens per second now [\d,]+, at most [\d,]+", figure(page, "Throughput"))
    assert "batch: p50 285 ms, p95 3.3 s 10 s 1 s 100 ms 10 min ago" in figure(page, "Time to whole answer")
    assert "No job was completed in the last 10 minutes." in figure(page, "Time to first token")
    # Lines of both lanes, of the throughput, and p50 and p95 of the lane whose jobs ended.
    drawn = [path.get_attribute("d") for path in page.locator(PATHS).all()]
    assert len([path for path in drawn if path]) == 5
    if not scripts:
        expect(page.get_by_text("This form needs the page's script.")).to_be_visible()
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
    else:
        expect(page.get_by_text("This form needs the page's script.")).to_have_count(0)


def test_it_follows_without_a_reload(
    open_page: Open, url: str, redis_url: str, raw: redis.Redis, keys: QueueKeys, watch: Watch
) -> None:
    page = open_page(url)
    expect(page.get_by_text("No worker is alive")).to_be_visible()
    expect(page.get_by_text("No job failed")).to_be_visible()
    page.evaluate("window.same = true")
    cell = page.locator("#queues tbody tr").first.locator("td").first
    cell.select_text()
    work(raw, keys)
    register(redis_url, "a-model", has_chat_template=False)
    with Client(redis_url, "demo") as client:
        client.submit("a")
    raw.xadd(keys.failures, {"job": "demo-1", "code": "engine_failed", "reason": HOSTILE, "attempts": 1})
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    expect(page.locator("#failures td.reason")).to_have_text(HOSTILE)
    assert [row[:3] for row in rows(page, "queues")][2:] == [["demo", "interactive", "1"], ["demo", "batch", "0"]]
    # The model that was chosen stays chosen, though another one stands before it now.
    assert page.get_by_label("Model").locator("option").all_inner_texts() == ["a-model", "demo"]
    assert page.get_by_label("Model").input_value() == "demo"
    assert page.locator("img, #live script").count() == 0
    assert page.evaluate("window.same && getSelection().toString().length > 0")
    # One document, its two parts, and then nothing but itself.
    assert {asked.removeprefix(url) for asked in watch.urls} <= {"", "page/page.css", "page/page.js", "data:,"}


@pytest.mark.parametrize("scripts", [True, False], ids=["script", "no-script"])
def test_bulk_files(open_page: Open, url: str, raw: redis.Redis, scripts: bool) -> None:
    put(raw, new_batch("batch_1", age=9000, status=BatchStatus.COMPLETED, total=7), completed=6, failed=1)
    error = BatchError("input_changed", f"it is another file {HOSTILE}")
    put(raw, new_batch("batch_2", age=5400, status=BatchStatus.FAILED, errors=(error,)))
    batch = new_batch("batch_3", age=100, status=BatchStatus.IN_PROGRESS, total=20_000, input="file:///in/a.csv")
    put(raw, batch, completed=4_998, failed=2, completion_tokens=50_000, problem=HOSTILE)
    put(raw, new_batch("batch_4"), checked="0.345")
    page = open_page(url, java_script_enabled=scripts)
    fourth, third, second, first = rows(page, "batches")
    assert fourth == ["batch_4", "prompts.jsonl", "validating", "34%", "-", "0", "-", "-", "-"]
    assert third[:3] + third[4:6] == ["batch_3", "a.csv", "in progress", "5,000/20,000", "2"]
    assert third[3].split("\n") == ["25%", f"waiting: {HOSTILE}"]
    # The mean since its begin, until it was seen to move.
    # The page is as old as the browser took to show it.
    assert (third[6] in ("48", "49", "50"), third[7] in ("5.0 min", "5.1 min"), int(third[8]) > 400) == (True,) * 3
    assert second[2:4] == ["failed", f"0%\n{error.message} [input_changed]"]
    assert first[2:] == ["completed", "100%", "7/7", "1", "-", "2.5 h ago", "-"]
    bar = page.get_by_role("progressbar", name="a.csv, in progress")
    assert bar.evaluate("bar => bar.position") == 0.25
    if scripts:
        page.evaluate("window.same = true")
        put(raw, batch, completed=9_998)
        raw.hdel(batch_key("batch_3"), "problem")
        expect(page.get_by_text("10,000/20,000")).to_be_visible()
        expect(page.get_by_text(f"waiting: {HOSTILE}")).to_have_count(0)
        assert bar.evaluate("bar => bar.position") == 0.5
        moved(raw, batch, BatchStatus.COMPLETED, completed=19_998)
        expect(page.get_by_role("progressbar", name="a.csv, completed")).to_be_visible()
        assert page.evaluate("window.same")


def test_nothing_yet(open_page: Open, gateway: GatewayServer) -> None:
    page = open_page(f"{gateway.url}/")
    expect(page.get_by_text("No model is registered; start a worker: millrace worker --model NAME")).to_be_visible()
    expect(page.get_by_text("No worker is alive; jobs wait until one is.")).to_be_visible()
    expect(page.get_by_text("There is no bulk file; hand one in: millrace batch submit INPUT")).to_be_visible()
    # A form that has no model to ask says so before it asks.
    page.get_by_label("Prompt", exact=True).fill("hello")
    page.get_by_role("button", name="Send").click()
    assert page.get_by_label("Model").evaluate("e => e.matches(':invalid')")


def test_an_outage_and_its_end(open_page: Open, watch: Watch) -> None:
    watch.expected_statuses = {503}
    with (
        EmbeddedRedis() as server,
        GatewayServer(server.url, QUICK, retry_for=0.2) as gateway,
    ):
        register(server.url)
        page = open_page(f"{gateway.url}/")
        expect(page.locator("#queues tbody tr")).to_have_count(2)
        assert page.locator("#problem").is_hidden()
        server.stop()
        expect(page.locator("#problem")).to_have_text(re.compile("^Not up to date: .*Redis"))
        # What was known stays, with its time.
        expect(page.locator("#queues tbody tr")).to_have_count(2)
        page.get_by_label("Prompt", exact=True).fill("hello")
        page.get_by_role("button", name="Send").click()
        expect(page.locator("#told.bad")).to_have_text(re.compile("^No answer: .*Redis"))
        # Opened now, the page is a page all the same, and does not say that there is nothing.
        later = open_page(f"{gateway.url}/")
        expect(later.locator("#problem")).to_have_text(re.compile("Redis"))
        expect(later.get_by_text("Not known.")).to_have_count(4)
        server.start()
        with FakeWorker(server.url):
            for one in (page, later):
                expect(one.locator("#problem")).to_be_hidden()
                expect(one.locator("#queues tbody tr")).to_have_count(2)
                one.get_by_label("Prompt", exact=True).fill("hello")
                one.get_by_role("button", name="Send").click()
                expect(one.locator("#answer")).to_have_text("HELLO")
                one.close()


def test_a_gateway_that_is_gone(open_page: Open, watch: Watch, redis_url: str) -> None:
    watch.expected_failures = True
    register(redis_url)
    with GatewayServer(redis_url, QUICK) as gateway:
        page = open_page(f"{gateway.url}/")
    expect(page.locator("#problem")).to_have_text("Not up to date: the gateway cannot be reached")
    page.get_by_label("Prompt", exact=True).fill("hello")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#told.bad")).to_have_text("No answer: the gateway cannot be reached")
