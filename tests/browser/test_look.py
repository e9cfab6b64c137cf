"""How the page looks and is used: light and dark, on a phone, by keyboard, and for those who do not see it."""

from __future__ import annotations

import json
import time

import redis
from playwright.sync_api import expect

from batch_maker import new_batch, put
from fake_worker import FakeWorker, register
from millrace import Client, Lane, WorkerInfo
from millrace_schemas import Latencies, QueueKeys, bucket_of, encode
from millrace_schemas.batch import BatchError, BatchStatus
from watched import Open, Watch

#: As long as a name or a reason can be, without a place to break it.
LONG = "x" * 300

#: Texts whose contrast with what is behind them is below 4.5, and lines below 3 (WCAG 1.4.3 and 1.4.11); buttons that
#: cannot be pressed are excepted there too. A background is the nearest one that is set, all of them being opaque.
_CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => {
    const [r, g, b] = rgb(text).map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!["transparent", "rgba(0, 0, 0, 0)"].includes(color)) return color;
    }
    return "none";
  };
  const contrast = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
  const found = [];
  const judge = (element, color, least, what) => {
    const behind = ground(element);
    if (rgb(color).length > 3 || rgb(behind).length > 3) found.push([what, color, behind, "not opaque"]);
    const ratio = contrast(color, behind);
    if (ratio < least) found.push([what, color, behind, ratio.toFixed(2)]);
    count[least] = (count[least] ?? 0) + 1;
  };
  const count = {};
  for (const element of document.body.querySelectorAll("*")) {
    if (!element.checkVisibility() || element.matches("button:disabled, [aria-disabled=true], option")) continue;
    const style = getComputedStyle(element);
    if (element.matches("path:not(.grid)")) judge(element, style.stroke, 3, `line ${element.getAttribute("class")}`);
    const texts = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const field = element.matches("select, input, textarea");
    if (texts || field) judge(element, style.color, 4.5, element.outerHTML.slice(0, 80));
    if (field) judge(element.parentElement, style.borderTopColor, 3, "edge");
    const label = getComputedStyle(element, "::before");
    if (element.matches("td") && label.content !== "none") judge(element, label.color, 4.5, "label of a cell");
  }
  return {found, count};
}"""


def fill(redis_url: str, raw: redis.Redis, keys: QueueKeys, long: str = "") -> None:
    """Something of everything."""
    with Client(redis_url, "demo") as client:
        client.submit_many([{"prompt": "a", "lane": "batch"}] * 3)
    raw.xadd(keys.failures, {"job": "demo-1", "code": f"engine_failed{long}", "reason": f"out{long}", "attempts": 2})
    errors = (BatchError("input_changed", f"another file{long}"),)
    put(raw, new_batch("batch_1", status=BatchStatus.FAILED, errors=errors))
    huge = {"total": 12_345_678, "input": f"s3://bucket/a{long}.csv"}
    batch = new_batch(f"batch_{'0' * 31}2", age=1000, status=BatchStatus.IN_PROGRESS, **huge)
    put(raw, batch, completed=10_000_000, failed=1_000_000, completion_tokens=10**9, problem=f"away{long}")
    for count in (1, 5):
        latencies = {
            lane: Latencies(first_token={bucket_of(0.1): count}, total={bucket_of(2.0): count}) for lane in Lane
        }
        beat = WorkerInfo(
            name=f"w-1{long}", model="demo", host="h", pid=1, device=f"cpu{long}", started_at=1.0, beat_at=time.time(),
            output_tokens=count * 1000, latencies=latencies,
        )  # fmt: skip
        raw.set(keys.worker("w-1"), encode(beat))
        raw.zadd(keys.workers, {"w-1": 1.0})
        time.sleep(0.5)


def test_contrast(
    open_page: Open, url: str, redis_url: str, raw: redis.Redis, keys: QueueKeys, worker: FakeWorker, watch: Watch
) -> None:
    watch.expected_statuses = {500}
    fill(redis_url, raw, keys)
    page = open_page(url)
    expect(page.locator("figure .plot")).to_have_count(4)
    page.get_by_label("Prompt", exact=True).fill("fail")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#told.bad")).to_be_visible()
    page.evaluate("document.getElementById('answer').textContent = 'an answer'")
    page.route("**/", lambda route: route.abort())
    watch.expected_failures = True
    expect(page.locator("#problem")).to_be_visible()
    for scheme, ground in (("light", "rgb(252, 252, 253)"), ("dark", "rgb(17, 17, 19)")):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        for width in (1200, 375):
            page.set_viewport_size({"width": width, "height": 800})
            judged = page.evaluate(_CONTRAST)
            assert judged["found"] == [], json.dumps(judged["found"], indent=1)
            assert judged["count"]["4.5"] > 60
            assert judged["count"]["3"] >= 10


def test_nothing_is_wider_than_the_page(
    open_page: Open, url: str, redis_url: str, raw: redis.Redis, keys: QueueKeys, worker: FakeWorker
) -> None:
    register(redis_url, f"b{LONG[:100]}")
    fill(redis_url, raw, keys, LONG)
    page = open_page(url)
    page.get_by_label("Prompt", exact=True).fill(LONG)
    page.get_by_label("Model").select_option("demo")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#answer")).to_have_text(LONG.upper())
    for width in (320, 375, 832, 840, 1200):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # On a phone a row is a block of lines with their headings, and a heading is no row of its own.
        cell = page.locator("#queues tbody td").first
        label = cell.evaluate("e => getComputedStyle(e, '::before').content")
        assert label == ('"model"' if width <= 832 else "none")


def test_the_whole_form_by_keyboard(open_page: Open, url: str, redis_url: str) -> None:
    with FakeWorker(redis_url, hold=True) as worker:
        page = open_page(url)

        def focus() -> str:
            """What has the focus, which must be seen."""
            seen = page.evaluate("""() => {
                const e = document.activeElement, style = getComputedStyle(e);
                return [e.name || e.id || e.hash, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
            }""")
            assert seen[1], seen
            return str(seen[0])

        def tab(key: str = "Tab") -> str:
            page.keyboard.press(key)
            return focus()

        assert tab() == "#try-it"
        page.keyboard.press("Enter")
        expect(page.locator("#try-it")).to_be_in_viewport()
        assert tab() == "model"
        assert tab() == "system"
        assert tab() == "prompt"
        page.keyboard.type("hello")
        assert tab() == "max_tokens"
        assert tab() == "send"
        page.keyboard.press("Enter")
        expect(page.locator("#told")).to_have_text("waiting for the first token")
        assert focus() == "send"
        assert tab() == "stop"
        page.keyboard.press("Space")
        expect(page.locator("#told")).to_have_text("stopped")
        # A button that cannot be pressed any more hands the focus on.
        assert focus() == "send"
        worker.release()
        assert tab("Shift+Tab") == "max_tokens"
        assert tab("Shift+Tab") == "prompt"
        page.keyboard.press("Control+Enter")
        expect(page.locator("#answer")).to_have_text("HELLO")


def test_everything_has_a_name(
    open_page: Open, url: str, redis_url: str, raw: redis.Redis, keys: QueueKeys, worker: FakeWorker
) -> None:
    fill(redis_url, raw, keys)
    page = open_page(url)
    expect(page.locator("figure .plot")).to_have_count(4)
    for name in ("Model", "System prompt", "Longest answer, tokens"):
        expect(page.get_by_label(name)).to_have_count(1)
    fields = page.locator("input, select, textarea")
    assert fields.evaluate_all("all => all.every((e) => e.labels.length === 1)")
    assert fields.count() == 4
    for name in (
        "Queues by model and lane", "Workers whose heartbeat lives", "The newest jobs that failed or expired",
        "Bulk files that have not ended, and the newest that have",
    ):  # fmt: skip
        expect(page.get_by_role("table", name=name)).to_have_count(1)
    expect(page.get_by_role("columnheader", name="hit rate")).to_have_count(1)
    images = page.get_by_role("img").evaluate_all("all => all.map((e) => e.ariaLabel)")
    assert len(images) == 4
    bars = page.get_by_role("progressbar")
    assert bars.evaluate_all("all => all.map((e) => e.ariaLabel)") == ["a.csv, in progress", "prompts.jsonl, failed"]
    assert images[0].startswith("Queue depth, jobs waiting: interactive: 0; batch: ")
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map((e) => Number(e.tagName[1]))")
    assert levels == [1, 2, 3, 2, 2, 2, 2]
    assert page.evaluate("document.documentElement.lang && document.title") == "Millrace"


def test_numbers_stand_under_each_other(
    open_page: Open, url: str, redis_url: str, raw: redis.Redis, keys: QueueKeys, worker: FakeWorker
) -> None:
    fill(redis_url, raw, keys)
    page = open_page(url)
    edges = page.locator("#queues :is(th, td).number").evaluate_all("""all => {
        const edge = (e) => {
            const range = document.createRange();
            range.selectNodeContents(e);
            return Math.round(range.getBoundingClientRect().right);
        };
        return all.map((e) => [e.cellIndex, edge(e)]);
    }""")
    assert len(edges) == 15
    assert len({tuple(edge) for edge in edges}) == 5
