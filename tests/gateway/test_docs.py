"""The page of the API: it needs nothing from elsewhere, shows everything, and its examples work."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import nullcontext
from html.parser import HTMLParser

import httpx2
import pytest

from bulk_parts import BulkThread
from fake_worker import FakeWorker
from gateway_server import GatewayServer
from millrace.bulk.settings import BulkSettings
from millrace.gateway import GatewaySettings
from millrace.gateway.openapi.docs_html import render
from millrace.gateway.openapi.document import build_document

HOSTILE = "</code></pre><script>alert(1)</script><img src=x onerror='alert(\"1\")'>&amp;$title"
DOCUMENT = build_document(GatewaySettings())
SAMPLES = {
    operation["operationId"]: operation["x-codeSamples"][0]["source"]
    for methods in DOCUMENT["paths"].values()
    for operation in methods.values()
}


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of each `pre`."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.examples: list[str] = []
        self._in_example = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "pre":
            self._in_example = True
            self.examples.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre":
            self._in_example = False

    def handle_data(self, data: str) -> None:
        if self._in_example:
            self.examples[-1] += data


def test_it_shows_every_operation_and_schema(http: httpx2.Client) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Parsed(answer.text)
    details = [attributes["id"] for tag, attributes in page.tags if tag == "div"]
    assert details == [*SAMPLES, *(f"schema-{name}" for name in DOCUMENT["components"]["schemas"])]
    assert page.examples == list(SAMPLES.values())
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links == {"openapi.json", "./", *(f"#{name}" for name in SAMPLES)} | {
        link for link in links if link and link.removeprefix("#") in details
    }


def test_it_loads_only_its_styles(http: httpx2.Client) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-security-policy"] == http.get("/").headers["content-security-policy"]
    tags = Parsed(answer.text).tags
    assert "script" not in {tag for tag, _ in tags}
    assert not any(name.startswith("on") or name == "style" for _, attributes in tags for name in attributes)
    loaded = [attributes["href"] or "" for tag, attributes in tags if tag == "link"]
    assert loaded == ["data:,", "page/page.css", "page/docs.css"]
    for path in loaded[1:]:
        style = http.get(f"/{path}")
        assert style.headers["content-type"].startswith("text/css")
        assert "url(" not in style.text
        assert "@import" not in style.text


@pytest.mark.parametrize("text", [HOSTILE, f"`{HOSTILE}`", f"`{HOSTILE}"], ids=["plain", "code", "half code"])
def test_whatever_stands_in_the_document_is_escaped(text: str) -> None:
    """Every text of the document becomes a hostile one; the tags of the page stay the same."""
    clean, hostile = Parsed(render(poisoned(DOCUMENT, "x"))), Parsed(render(poisoned(DOCUMENT, text)))
    assert [tag for tag, _ in hostile.tags if tag != "code"] == [tag for tag, _ in clean.tags if tag != "code"]


def poisoned(value: object, text: str, key: str = "") -> object:
    """`value` with `text` behind all that people wrote in it."""
    if isinstance(value, dict):
        return {name: poisoned(inner, text, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, text, key) for inner in value]
    written = ("description", "summary", "source", "pattern", "version", "title", "default", "const", "enum")
    return value + text if isinstance(value, str) and key in written else value


@pytest.mark.parametrize("name", SAMPLES)
def test_examples_work(name: str, gateway: GatewayServer, worker: FakeWorker, redis_url: str) -> None:
    """As they are pasted into a shell, but for the address."""
    source = SAMPLES[name].replace("http://localhost:8000", gateway.url)
    code = (
        f"set -euo pipefail; curl() {{ command curl --max-time 20 -w '%{{stderr}}%{{http_code}} ' \"$@\"; }}\n{source}"
    )
    # A batch that nobody works on has no end.
    with BulkThread(redis_url, BulkSettings(flush_seconds=0.1)) if name == "readBatchEvents" else nullcontext():
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    statuses = re.findall(r"\d{3}", done.stderr)
    if name == "deleteResponse":
        assert statuses.pop() == "405"
    # No worker's heartbeat is there before its first job has ended.
    assert set(statuses) <= ({"200", "202"} if name != "readiness" else {"200", "503"})
    if name not in ("statusPage", "docs", "pageAsset", "metrics", "readJobEvents", "readBatchEvents"):
        assert json.loads(done.stdout)
    if name == "readJob":
        assert json.loads(done.stdout)["state"] == "completed"
    if name == "readBatchEvents":
        assert "event: batch.completed" in done.stdout
    if name == "readJobEvents":
        assert "event: finished" in done.stdout
