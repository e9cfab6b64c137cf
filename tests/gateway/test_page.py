"""The status page: what it shows, that it stays whole whatever the queues hold, and what its script asks for."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser

import httpx2
import pytest
import redis

from batch_maker import new_batch, put
from fake_worker import FakeWorker
from gateway_server import GatewayServer
from millrace import Failure, Lane, LaneStats, ModelInfo, QueueStats, WorkerInfo
from millrace.bulk.glance import BulkFiles, Paces
from millrace.bulk.store import View
from millrace.embedded import EmbeddedRedis, free_port
from millrace.gateway.history import History
from millrace.gateway.page_html import render
from millrace.overview import Overview
from millrace_schemas import QueueKeys, encode, queue_of
from millrace_schemas.batch import BatchProgress, BatchStatus

HOSTILE = """</td></option></script><script>alert(1)</script><img src=x onerror='alert("1")'>&amp;$models\x1b]0;"""
#: As it is shown.
CLEAN = HOSTILE.replace("\x1b", "\ufffd")


class Parsed(HTMLParser):
    """Tags with their attributes, and the cells of every table's body by the table's id."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text: dict[str, str] = {}
        self._table = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        self._open.append(tag)
        if tag == "table":
            self._table = given["id"] or ""
            self.tables[self._table] = []
        elif tag == "tr" and "tbody" in self._open:
            self.tables[self._table].append([])
        elif tag == "td":
            self.tables[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        inner = self._open[-1] if self._open else ""
        if inner == "td":
            self.tables[self._table][-1][-1] += data
        else:
            self.text[inner] = self.text.get(inner, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def beat(raw: redis.Redis, name: str, model: str = "demo", **numbers: float | str) -> None:
    given = {"host": "h", "pid": 1, "device": "cpu", "started_at": 1.0, "beat_at": time.time(), **numbers}
    keys = QueueKeys(queue_of(model))
    raw.set(keys.worker(name), encode(WorkerInfo(name=name, model=model, **given)))
    raw.zadd(keys.workers, {name: 1.0})


def test_the_page_shows_queues_workers_and_failures(http: httpx2.Client, raw: redis.Redis, keys: QueueKeys) -> None:
    http.post("/v1/jobs", json=[{"prompt": "a", "lane": "batch"}] * 3)
    beat(
        raw, "w-1", device="cuda", beat_at=time.time() - 90,
        running=7, waiting=5, kv_usage=0.42, finished=1234, output_tokens=56789, prompt_tokens=8, cached_tokens=5,
    )  # fmt: skip
    raw.xadd(keys.dead, {"job": "j", "lane": "batch", "code": "undecodable", "reason": "no request", "attempts": 2})
    answer = http.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["cache-control"] == "no-store"
    found = Parsed(answer.text)
    assert [row[:4] + row[5:] for row in found.tables["queues"]] == [
        ["demo", "interactive", "0", "0", "0", "1"],
        ["demo", "batch", "3", "0", "0", "1"],
    ]
    assert found.tables["queues"][0][4] == "-"
    assert re.fullmatch(r"\d+ s", found.tables["queues"][1][4])
    assert found.tables["workers"] == [
        ["w-1", "demo", "cuda", "7", "5", "42%", "62%", "1,234", "56,789", "-", "1.5 min"]
    ]
    assert [row[1:] for row in found.tables["failures"]] == [["demo", "undecodable", "2", "j", "no request"]]
    assert found.all("option") == [{"value": "demo", "data-chat": "yes"}]


def test_the_json_has_the_numbers(http: httpx2.Client, raw: redis.Redis, keys: QueueKeys) -> None:
    http.post("/v1/jobs", json={"prompt": "a"})
    beat(raw, "w-1", output_tokens=10)
    raw.xadd(keys.dead, {"code": "undecodable", "reason": "x" * 5000, "data": b"\xff" * 5000})
    put(raw, new_batch("batch_1", age=10, status=BatchStatus.IN_PROGRESS, total=8), completed=2)
    answer = http.get("/status.json")
    assert answer.headers["cache-control"] == "no-store"
    found = answer.json()
    (queue,) = found["queues"]
    assert (queue["model"], queue["lanes"]["interactive"]["waiting"], queue["dead"]) == ("demo", 1, 1)
    assert queue["lanes"]["interactive"]["oldest_waiting"] >= 0
    assert abs(queue["at"] - time.time()) < 60
    assert [(w["name"], w["output_tokens"]) for w in queue["workers"]] == [("w-1", 10)]
    assert [model["has_chat_template"] for model in found["models"]] == [True]
    (batch,) = found["bulk"]["batches"]
    assert (batch["id"], batch["share"], found["bulk"]["unfinished"]) == ("batch_1", 0.25, 1)
    assert batch["rate"] == pytest.approx(0.2, rel=0.2)
    # Neither the raw data nor a reason without end.
    assert len(answer.content) < 4000
    (failure,) = found["failures"]
    assert (failure["model"], failure["job"], failure["attempts"], len(failure["reason"])) == ("demo", None, 0, 500)


def overview_of(text: str) -> Overview:
    """With `text` wherever somebody else has a say."""
    model = ModelInfo(name=text, max_model_len=1, vocab_size=1)
    failure = Failure(model=text, at=0.0, job=text, lane=text, code=text, reason=text, attempts=0)
    lanes = {lane: LaneStats(waiting=1, in_flight=0) for lane in Lane}
    worker = WorkerInfo(name=text, model=text, host=text, pid=1, device=text, started_at=0.0, beat_at=1.0)
    queue = QueueStats(model=text, at=1.0, lanes=lanes, delayed=0, dead=0, workers=[worker])
    batch = new_batch(text, age=10, status=BatchStatus.IN_PROGRESS, input=f"s3://b/{text.replace('/', '')}", total=9)
    glance = Paces().glance(View(batch, BatchProgress(completed=3), None, text, time.time()), time.time())
    return Overview(models=[model], queues=[queue], failures=[failure], bulk=BulkFiles(batches=(glance,), unfinished=3))


def rendered(text: str) -> str:
    history = History()
    history.record(overview_of(text))
    return render(overview_of(text), history, every=2)


def test_what_others_wrote_makes_no_element_and_no_attribute() -> None:
    hostile, plain = Parsed(rendered(HOSTILE)), Parsed(rendered("plain"))
    options = {"value": HOSTILE, "data-chat": "no"}
    assert hostile.all("option") == [options]
    assert hostile.text["h3"] == CLEAN
    assert hostile.tables["workers"][0][:3] == [CLEAN] * 3
    assert hostile.tables["failures"][0][1:] == [CLEAN, CLEAN, "0", CLEAN, CLEAN]
    assert hostile.tables["batches"][0][:2] == [CLEAN, CLEAN.replace("/", "")]
    assert hostile.text["small"].endswith(f"waiting: {CLEAN}")
    hostile.all("progress")[0]["aria-label"] = plain.all("progress")[0]["aria-label"]
    without = [tag if tag[0] != "option" else ("option", {}) for tag in hostile.tags]
    assert without == [tag if tag[0] != "option" else ("option", {}) for tag in plain.tags]
    nothing = Overview(models=[], queues=[], failures=[])
    away, hostile_away = (Parsed(render(nothing, History(), every=2, problem=text)) for text in ("away", HOSTILE))
    assert hostile_away.tags == away.tags


def test_what_others_wrote_comes_out_of_redis_as_it_is(http: httpx2.Client, raw: redis.Redis, keys: QueueKeys) -> None:
    beat(raw, HOSTILE, device=HOSTILE)
    raw.xadd(keys.dead, {"job": HOSTILE, "lane": HOSTILE, "code": HOSTILE, "reason": HOSTILE})
    text = http.get("/").text
    assert "\x1b" not in text
    found = Parsed(text)
    assert (found.tables["workers"][0][0], found.tables["workers"][0][2]) == (CLEAN, CLEAN)
    assert found.tables["failures"][0][1:] == ["demo", CLEAN, "0", CLEAN, CLEAN]


def test_the_page_may_load_its_own_files_only(http: httpx2.Client) -> None:
    answer = http.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy["script-src"], policy["style-src"], policy["connect-src"]} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    found = Parsed(answer.text)
    assert [s["src"] for s in found.all("script")] == ["page/page.js"]
    assert "".join(found.text.get(tag, "") for tag in ("script", "style")).strip() == ""
    assert not any(name.startswith("on") or name == "style" for _, given in found.tags for name in given)
    for path, kind in (("page/page.js", "text/javascript"), ("page/page.css", "text/css")):
        part = http.get(path)
        assert part.headers["content-type"].split(";")[0] == kind
        assert part.headers["x-content-type-options"] == "nosniff"
        # The one address is the name of SVG's elements.
        assert set(re.findall(r"https?://[^\s\"']+", part.text)) <= {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in http.get("page/page.css").text
    script = http.get("page/page.js").text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\.style\b", script)


@pytest.mark.parametrize("path", ["/page/page.html", "/page/page.py", "/page/..%2fpage.py", "/page/", "/page"])
def test_no_other_file_is_served(http: httpx2.Client, path: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


def test_the_script_uses_what_the_page_has(http: httpx2.Client) -> None:
    script, found = http.get("page/page.js").text, Parsed(http.get("/").text)
    ids = {given["id"] for _, given in found.tags if "id" in given}
    used = set(re.findall(r'(?:byId|getElementById)\("(\w+)"\)', script))
    assert used >= {"problem", "summary", "live", "try", "send", "stop", "told", "answer"}
    assert used <= ids
    named = {given["name"] for _, given in found.tags if given.get("name") and _ in ("select", "textarea", "input")}
    assert set(re.findall(r"\bfield\.(\w+)", script)) == named


@pytest.mark.parametrize("prompt", ["hello", HOSTILE.replace("\x1b", "")])
def test_a_prompt_streams_as_the_script_asks(http: httpx2.Client, worker: FakeWorker, prompt: str) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": prompt}]
    body = {"model": "demo", "max_tokens": 256, "stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "v1/chat/completions", json={**body, "messages": messages}) as answer:
        assert answer.status_code == 200
        data = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    events = [json.loads(event) for event in data]
    text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])
    assert text == prompt.upper()
    assert events[-1]["usage"]["completion_tokens"] > 0
    assert [e["choices"] for e in events if e.get("usage")] == [[]]


def test_without_models_and_without_redis() -> None:
    with EmbeddedRedis() as server, GatewayServer(server.url) as gateway:
        empty = httpx2.get(gateway.url)
        assert empty.status_code == 200
        assert Parsed(empty.text).tables == {}
        assert "millrace worker --model" in empty.text
    with GatewayServer(f"redis://127.0.0.1:{free_port()}/0", retry_for=0.0) as gateway:
        for path in ("/", "/status.json"):
            answer = httpx2.get(gateway.url + path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert "Redis" in answer.text
        assert answer.json()["error"]["code"] == "queue_unavailable"
