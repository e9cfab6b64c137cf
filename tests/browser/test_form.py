"""The form: an answer as it is made, its end, its stop, and in words why there is none."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import redis
from playwright.sync_api import Page, Route, expect

from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace_schemas import QueueKeys, Request, Tokens, decode
from watched import QUICK, Open, Watch


@pytest.fixture
def held(redis_url: str) -> Iterator[FakeWorker]:
    """Takes jobs and keeps them until `release()`."""
    with FakeWorker(redis_url, hold=True) as worker:
        yield worker


def ask(page: Page, prompt: str, system: str = "") -> None:
    page.get_by_label("System prompt").fill(system)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Send").click()


def only_job(worker: FakeWorker) -> str:
    limit = time.monotonic() + 10
    while not worker.taken:
        assert time.monotonic() < limit
        time.sleep(0.01)
    return worker.taken[-1]


def test_an_answer_comes_as_it_is_made(
    open_page: Open, url: str, held: FakeWorker, raw: redis.Redis, keys: QueueKeys
) -> None:
    page = open_page(url)
    page.get_by_label("Longest answer, tokens").fill("99")
    ask(page, "<b>no</b> html", "be brief")
    job = only_job(held)
    expect(page.locator("#told")).to_have_text("waiting for the first token")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.get_by_role("button", name="Send").click(force=True)
    held.publish(job, Tokens(0, (7,), "<"))
    expect(page.locator("#answer")).to_have_text("<")
    expect(page.locator("#told")).to_have_text(re.compile(r"^first token after \d+\.\d\d s$"))
    held.publish(job, Tokens(1, (8,), "B>N"))
    expect(page.locator("#answer")).to_have_text("<B>N")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#told")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    # Nobody waits for the job any more, so it is cancelled; and the second click made no other.
    limit = time.monotonic() + 10
    while raw.hget(keys.job(job), "cancel_requested") != b"1":
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert held.taken == [job]
    request = decode(raw.hget(keys.job(job), "request"), Request)
    assert [message.content for message in request.messages or ()] == ["be brief", "<b>no</b> html"]
    assert request.sampling.max_tokens == 99


def test_a_whole_answer(open_page: Open, url: str, worker: FakeWorker) -> None:
    page = open_page(url)
    for prompt in ("hello", "again ä漢🌍"):
        ask(page, prompt)
        expect(page.locator("#answer")).to_have_text(prompt.upper())
        told = re.compile(rf"^{len(prompt)} tokens in \d+\.\d\d s, the first after \d+\.\d\d s$")
        expect(page.locator("#told")).to_have_text(told)
        assert page.locator("#told").get_attribute("class") == ""


def test_a_model_without_a_chat_template_completes(open_page: Open, url: str, redis_url: str) -> None:
    with FakeWorker(redis_url, "base"):
        register(redis_url, "base", has_chat_template=False)
        page = open_page(url)
        page.get_by_label("Model").select_option("base")
        ask(page, "and then", "Once upon")
        expect(page.locator("#answer")).to_have_text("ONCE UPON AND THEN")


def test_why_there_is_no_answer(open_page: Open, url: str, worker: FakeWorker, watch: Watch) -> None:
    watch.expected_statuses = {404, 400, 500}
    page = open_page(url)
    ask(page, "fail, please")
    expect(page.locator("#told.bad")).to_have_text("No answer: told to fail")
    page.get_by_label("Longest answer, tokens").fill("100000")
    ask(page, "hello")
    expect(page.locator("#told.bad")).to_have_text(re.compile("^No answer: .*512"))
    page.get_by_label("Longest answer, tokens").fill("16")
    # As when the model went between the last look and the click.
    page.get_by_label("Model").evaluate("e => { e.options[0].value = 'gone'; e.form.requestSubmit() }")
    expect(page.locator("#told.bad")).to_have_text("No answer: no worker has registered model 'gone'; registered: demo")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_a_refusal_is_told_in_its_words(open_page: Open, url: str, worker: FakeWorker, watch: Watch) -> None:
    """Whoever refuses, the gateway or a proxy before it."""
    watch.expected_statuses = {401, 403, 429}
    page = open_page(url)
    for status in sorted(watch.expected_statuses):
        body = json.dumps({"error": {"message": f"not you, not now ({status})"}})
        refuse = partial(Route.fulfill, status=status, content_type="application/json", body=body)
        page.route("**/v1/**", refuse)
        ask(page, "hello")
        expect(page.locator("#told.bad")).to_have_text(f"No answer: not you, not now ({status})")
        if status != 401:
            page.route("**/", refuse)
            expect(page.locator("#problem")).to_have_text(f"Not up to date: not you, not now ({status})")
        page.route("**/v1/**", partial(Route.fulfill, status=status, body="<h1>proxy</h1>"))
        ask(page, "hello")
        expect(page.locator("#told.bad")).to_have_text(f"No answer: the gateway answered {status}")


def operator_key(maker: KeyMaker) -> str:
    """Made in another thread: the loop of this one is Playwright's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(maker, operator=True).result()


def follows(page: Page) -> None:
    """The form answers, and the page goes on."""
    ask(page, "hello")
    expect(page.locator("#answer")).to_have_text("HELLO")
    expect(page.locator("#told")).to_have_text(re.compile("tokens in"))
    expect(page.locator("time")).not_to_have_text(page.locator("time").inner_text())
    expect(page.locator("#problem")).to_be_hidden()


def test_with_a_key_as_password(open_page: Open, redis_url: str, worker: FakeWorker, watch: Watch) -> None:
    watch.expected_statuses = {401}
    maker = KeyMaker(redis_url)
    key = operator_key(maker)
    with GatewayServer(redis_url, replace(QUICK, require_keys=True, key_seconds=0.1)) as gateway:
        page = open_page(f"{gateway.url}/", http_credentials={"username": "any", "password": key})
        follows(page)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(maker.revoke, key).result()
        expect(page.locator("#problem")).to_have_text(re.compile("does not know this page's key any more"))
        ask(page, "hello")
        expect(page.locator("#told.bad")).to_have_text(re.compile("^No answer: give an API key"))
        # A browser would ask for the password at each look.
        looks = watch.urls.count(f"{gateway.url}/")
        page.wait_for_timeout(1000)
        assert watch.urls.count(f"{gateway.url}/") == looks
        page.close()


def test_with_a_key_in_the_address(open_page: Open, redis_url: str, worker: FakeWorker, watch: Watch) -> None:
    watch.expected_statuses = {401}
    key = operator_key(KeyMaker(redis_url))
    with GatewayServer(redis_url, replace(QUICK, require_keys=True)) as gateway:
        page = open_page(gateway.url.replace("http://", f"http://any:{key}@") + "/")
        follows(page)
        page.close()
