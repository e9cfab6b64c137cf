"""Log-probabilities through OpenAI's package, from real worker processes whose engine says predictable things."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from fake_engine import expected_tokens, likely_of
from fake_text import LetterTokenizer
from millrace import Client, Sampling
from queue_probe import MODEL
from worker_process import WorkerProcess

LETTERS = LetterTokenizer()
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def until_registered(http: httpx2.Client) -> None:
    limit = time.monotonic() + 10
    while MODEL not in http.get("/v1/models").text:
        assert time.monotonic() < limit
        time.sleep(0.02)


def said(count: int) -> list[int]:
    return expected_tokens(LETTERS.encode("hello"), count)


def content(ids: list[int], top: int) -> list[dict[str, Any]]:
    """`logprobs.content` of chat completions."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        letter = LETTERS.decode([token_id])
        return {"token": letter, "logprob": logprob, "bytes": list(letter.encode())}

    found = []
    for token_id in ids:
        likely = likely_of(token_id, top)
        others = [one(*pair) for pair in zip(likely.top_ids, likely.top, strict=True)]
        found.append({**one(token_id, likely.logprob), "top_logprobs": others})
    return found


@pytest.fixture
def working(http: httpx2.Client, redis_url: str, tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(redis_url, tmp_path) as worker:
        until_registered(http)
        yield worker


@pytest.mark.parametrize("top", [0, 3])
def test_chat_whole_and_streamed(working: WorkerProcess, ai: openai.OpenAI, top: int) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 30, "logprobs": True}
    if top:
        asked["top_logprobs"] = top
    choice = ai.chat.completions.create(**asked).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.to_dict()["content"] == content(said(30), top)
    assert "".join(token.token for token in choice.logprobs.content or ()) == choice.message.content
    pieces: list[Any] = []
    text = ""
    for chunk in ai.chat.completions.create(**asked, stream=True):
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs is not None:
            pieces += chunk.choices[0].logprobs.to_dict()["content"]
    assert pieces == content(said(30), top)
    assert text == choice.message.content
    nothing = ai.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=30)
    assert nothing.choices[0].logprobs is None


def test_completions_whole_and_streamed(working: WorkerProcess, ai: openai.OpenAI) -> None:
    ids, letters = said(20), LETTERS.decode(said(20))
    whole = ai.completions.create(model=MODEL, prompt="hello", max_tokens=20, logprobs=2).choices[0].logprobs
    assert whole is not None
    assert whole.tokens == list(letters)
    assert whole.token_logprobs == [likely_of(token, 0).logprob for token in ids]
    assert whole.text_offset == list(range(20))
    for token, likeliest in zip(ids, whole.top_logprobs or (), strict=True):
        # The first of the fake's likeliest is the chosen token itself, with another number.
        assert likeliest == {LETTERS.decode([token]): likely_of(token, 0).logprob, LETTERS.decode([token + 1]): -0.5}
    joined: dict[str, list[Any]] = {}
    for chunk in ai.completions.create(model=MODEL, prompt="hello", max_tokens=20, logprobs=2, stream=True):
        if chunk.choices[0].logprobs is not None:
            for name, values in chunk.choices[0].logprobs.to_dict().items():
                joined.setdefault(name, []).extend(values)  # type: ignore[arg-type]
    assert joined == whole.to_dict()


def test_responses_whole_and_streamed(working: WorkerProcess, ai: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "input": "hello", "max_output_tokens": 20, "top_logprobs": 2,
        "include": ["message.output_text.logprobs"],
    }  # fmt: skip
    whole: Any = ai.responses.create(**asked)
    part = whole.output[0].content[0].to_dict()
    assert part["logprobs"] == content(said(20), 2)
    assert whole.top_logprobs == 2
    events: list[Any] = list(ai.responses.create(**asked, stream=True))
    pieces = [token for e in events if e.type == "response.output_text.delta" for token in e.to_dict()["logprobs"]]

    def without_bytes(tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {name: without_bytes(it) if name == "top_logprobs" else it for name, it in token.items() if name != "bytes"}
            for token in tokens
        ]

    assert pieces == without_bytes(content(said(20), 2))
    done = next(e for e in events if e.type == "response.output_text.done")
    assert done.to_dict()["logprobs"] == pieces
    assert events[-1].response.output[0].content[0].to_dict() == part


def test_they_outlive_a_killed_engine_and_a_killed_worker(
    http: httpx2.Client, redis_url: str, tmp_path: Path, ai: openai.OpenAI
) -> None:
    """Of what was made before as well: in the stream, and in the result that another worker writes."""
    stream: list[Any] = []
    killed: list[str] = []
    with ExitStack() as heirs, WorkerProcess(redis_url, tmp_path, engine=("--step", "0.02")) as worker:
        until_registered(http)
        asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 120, "logprobs": True}
        for chunk in ai.chat.completions.create(**asked, top_logprobs=2, stream=True):
            if chunk.choices[0].logprobs is not None:
                stream += chunk.choices[0].logprobs.to_dict()["content"]
            if len(stream) > 10 and not killed:
                killed.append("engine")
                os.kill(worker.engine_pid(), signal.SIGKILL)
            if len(stream) > 50 and len(killed) == 1:
                killed.append("worker")
                worker.kill()
                heirs.enter_context(WorkerProcess(redis_url, tmp_path))
        job_id = chunk.id.removeprefix("chatcmpl-")
        with Client(redis_url, model=MODEL) as client:
            result = client.get(job_id).result(timeout=10)
    assert killed == ["engine", "worker"]
    assert stream == content(said(120), 2)
    logprobs = result.choices[0].logprobs
    assert logprobs is not None
    assert [token.token_id for token in logprobs] == list(result.choices[0].token_ids) == said(120)
    assert [token.logprob for token in logprobs] == [likely_of(token, 0).logprob for token in said(120)]
    assert result.attempts == 2


def test_a_worker_without_stream_hands_them_over(redis_url: str, tmp_path: Path) -> None:
    with Client(redis_url, model=MODEL) as client, ExitStack() as heirs:
        worker = WorkerProcess(redis_url, tmp_path, engine=("--step", "0.02"), grace=0.2).start()
        job = client.submit("hello", sampling=Sampling(max_tokens=100, logprobs=1))
        limit = time.monotonic() + 10
        while job.state() == "queued":
            assert time.monotonic() < limit
        time.sleep(0.3)
        worker.stop()
        heirs.enter_context(WorkerProcess(redis_url, tmp_path))
        result = job.result(timeout=20)
    logprobs = result.choices[0].logprobs
    assert logprobs is not None
    assert [(token.token_id, len(token.top_logprobs)) for token in logprobs] == [(token, 1) for token in said(100)]
