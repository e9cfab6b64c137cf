"""The gateway before real worker processes, whose engine generates predictable tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from fake_engine import expected_tokens
from fake_text import LetterTokenizer
from queue_probe import MODEL
from worker_process import WorkerProcess

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def expected(text: str, count: int) -> str:
    tokenizer = LetterTokenizer()
    return tokenizer.decode(expected_tokens(tokenizer.encode(text), count))


def until_registered(http: httpx2.Client) -> None:
    limit = time.monotonic() + 10
    while MODEL not in http.get("/v1/models").text:
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.fixture
def working(http: httpx2.Client, redis_url: str, tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(redis_url, tmp_path) as worker:
        until_registered(http)
        yield worker


def test_answers_and_streams(working: WorkerProcess, ai: openai.OpenAI, http: httpx2.Client) -> None:
    text = expected("hello", 40)
    answer = ai.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=40)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 40)

    chunks = list(ai.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=40, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "length"

    stopped = ai.completions.create(model=MODEL, prompt="hello", max_tokens=40, stop=[text[5:9]])
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (text[: text.index(text[5:9])], "stop")

    # "demo" is registered too, and nobody serves it.
    assert http.get("/readyz").json()["models"] == [MODEL]


@pytest.mark.parametrize("stream", [False, True])
def test_what_only_the_worker_finds_out(working: WorkerProcess, ai: openai.OpenAI, stream: bool) -> None:
    """These come from the job's result; a stream has said nothing yet, so they are an HTTP error there too."""
    for content, code in (("untokenizable", "tokenization_failed"), ("x" * 5000, "context_length_exceeded")):
        messages: list[Any] = [{"role": "user", "content": content}]
        with pytest.raises(openai.BadRequestError) as refused:
            ai.chat.completions.create(model=MODEL, messages=messages, stream=stream)
        assert (refused.value.code, refused.value.param) == (code, "messages")


def test_a_stream_goes_on_when_its_worker_is_killed(
    http: httpx2.Client, redis_url: str, tmp_path: Path, ai: openai.OpenAI
) -> None:
    got, killed = "", False
    with ExitStack() as heirs, WorkerProcess(redis_url, tmp_path, engine=("--step", "0.02")) as worker:
        until_registered(http)
        for chunk in ai.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=120, stream=True):
            got += chunk.choices[0].delta.content or ""
            if 10 < len(got) < 120 and not killed:
                worker.kill()
                heirs.enter_context(WorkerProcess(redis_url, tmp_path))
                killed = True
    assert killed
    assert got == expected("hello", 120)
