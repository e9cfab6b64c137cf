"""The status page: what it shows, that it stays whole whatever the queues hold, and what its script asks for."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser

import httpx2
import pytest
import redis

from fake_worker import FakeWorker
from gateway_server import GatewayServer
from millrace import ModelInfo, WorkerInfo
from millrace.embedded import EmbeddedRedis, free_port
from millrace.gateway.page_html import render
from millrace.overview import DeadJob, Overview
from millrace_schemas import QueueKeys, encode, queue_of

HOSTILE = """</td></option></script><script>alert(1)</script><img src=x onerror='alert("1")'>&amp;$models\x1b]0;"""
#: As it is shown.
CLEAN = HOSTILE.replace("\x1b", "\ufffd")
NOTHING = Overview(models=[], queues=[], dead=[])


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


def others(found: Parsed) -> list[tuple[str, dict[str, str | None]]]:
    """All but what stands for something in a queue."""
    return [tag for tag in found.tags if tag[0] not in ("tr", "td", "option")]


def beat(raw: redis.Redis, name: str, model: str = "demo", **numbers: float | str) -> None:
    given = {"host": "h", "pid": 1, "device": "cpu", "started_at": 1.0, "beat_at": time.time(), **numbers}
    keys = QueueKeys(queue_of(model))
    raw.set(keys.worker(name), encode(WorkerInfo(name=name, model=model, **given)))
    raw.zadd(keys.workers, {name: 1.0})


def test_the_page_shows_queues_workers_and_the_dead(http: httpx2.Client, raw: redis.Redis, keys: QueueKeys) -> None:
    http.post("/v1/jobs", json=[{"prompt": "a", "lane": "batch"}] * 3)
    beat(
        raw, "w-1", device="cuda", beat_at=time.time() - 90,
        running=7, waiting=5, kv_usage=0.42, finished=1234, output_tokens=56789,
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
    assert found.tables["workers"] == [["w-1", "demo", "cuda", "7", "5", "42%", "1,234", "56,789", "1.5 min"]]
    assert [row[1:] for row in found.tables["dead"]] == [["demo", "undecodable", "2", "j", "no request"]]
    assert found.all("option") == [{"value": "demo", "data-chat": "yes"}]


def test_the_json_has_the_same_rows_and_the_numbers(http: httpx2.Client, raw: redis.Redis, keys: QueueKeys) -> None:
    http.post("/v1/jobs", json={"prompt": "a"})
    beat(raw, "w-1", output_tokens=10)
    raw.xadd(keys.dead, {"code": "undecodable", "reason": "x" * 5000, "data": b"\xff" * 5000})
    answer = http.get("/status.json")
    assert answer.headers["cache-control"] == "no-store"
    found = answer.json()
    (queue,) = found["queues"]
    assert (queue["model"], queue["lanes"]["interactive"]["waiting"], queue["dead"]) == ("demo", 1, 1)
    assert queue["lanes"]["interactive"]["oldest_waiting"] >= 0
    assert abs(queue["at"] - time.time()) < 60
    assert [(w["name"], w["output_tokens"]) for w in queue["workers"]] == [("w-1", 10)]
    assert [model["has_chat_template"] for model in found["models"]] == [True]
    # Neither the raw data nor a reason without end.
    assert len(answer.content) < 4000
    (dead,) = found["dead"]
    assert (dead["model"], dead["job"], dead["attempts"], len(dead["reason"])) == ("demo", None, 0, 500)
    shown = Parsed(http.get("/").text).tables
    assert {name: len(rows) for name, rows in found["rows"].items()} == {"queues": 2, "workers": 1, "dead": 1}
    for name, rows in found["rows"].items():
        assert [row[1:4] for row in rows] == [row[1:4] for row in shown[name]]


def test_what_others_wrote_cannot_leave_its_cell(http: httpx2.Client, raw: redis.Redis, keys: QueueKeys) -> None:
    beat(raw, HOSTILE, device=HOSTILE)
    raw.xadd(keys.dead, {"job": HOSTILE, "lane": HOSTILE, "code": HOSTILE, "reason": HOSTILE})
    text = http.get("/").text
    found = Parsed(text)
    assert others(found) == others(Parsed(render(NOTHING)))
    assert all(set(cell) == {"data-label"} for cell in found.all("td"))
    assert (found.tables["workers"][0][0], found.tables["workers"][0][2]) == (CLEAN, CLEAN)
    assert found.tables["dead"][0][1:] == ["demo", CLEAN, "0", CLEAN, CLEAN]
    assert "\x1b" not in text


def test_what_queues_do_not_allow_is_escaped_as_well() -> None:
    model = ModelInfo(name=HOSTILE, max_model_len=1, vocab_size=1)
    dead = DeadJob(model=HOSTILE, id="1-0", at=0.0, job=None, lane=None, code="", reason="", attempts=0)
    found = Parsed(render(Overview(models=[model], queues=[], dead=[dead]), HOSTILE))
    assert others(found) == others(Parsed(render(NOTHING)))
    assert found.all("option") == [{"value": HOSTILE, "data-chat": "no"}]
    assert found.tables["dead"][0][1] == CLEAN


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
    used = set(re.findall(r'byId\("(\w+)"\)', script))
    assert used >= {"problem", "plots", "try", "stop", "told", "answer"}
    assert used <= ids
    assert set(http.get("/status.json").json()["rows"]) <= ids
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
        assert Parsed(empty.text).tables == {"queues": [], "workers": [], "dead": []}
        assert "millrace worker --model" in empty.text
    with GatewayServer(f"redis://127.0.0.1:{free_port()}/0", retry_for=0.0) as gateway:
        for path in ("/", "/status.json"):
            answer = httpx2.get(gateway.url + path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert "Redis" in answer.text
        assert answer.json()["error"]["code"] == "queue_unavailable"
