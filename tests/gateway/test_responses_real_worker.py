"""Responses before real worker processes, whose engine generates predictable tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from fake_engine import expected_tokens
from fake_text import LetterTokenizer
from queue_probe import MODEL
from worker_process import WorkerProcess


def expected(text: str, count: int) -> str:
    tokenizer = LetterTokenizer()
    return tokenizer.decode(expected_tokens(tokenizer.encode(text), count))


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.fixture
def slow(http: httpx2.Client, redis_url: str, tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(redis_url, tmp_path, engine=("--step", "0.02")) as worker:
        until(lambda: MODEL in http.get("/v1/models").text)
        yield worker


def test_whole_and_streamed(slow: WorkerProcess, ai: openai.OpenAI) -> None:
    text = expected("hello", 40)
    whole = ai.responses.create(model=MODEL, input="hello", max_output_tokens=40)
    assert (whole.output_text, whole.status) == (text, "incomplete")
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (5, 40)
    events: list[Any] = list(ai.responses.create(model=MODEL, input="hello", max_output_tokens=40, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == text


def test_cancelling_keeps_what_there_is(slow: WorkerProcess, ai: openai.OpenAI) -> None:
    stream: Any = ai.responses.create(model=MODEL, input="hello", max_output_tokens=400, stream=True, background=True)
    events: list[Any] = []
    for event in stream:
        events.append(event)
        if event.type == "response.output_text.delta" and len(events) == 8:
            cancelled = ai.responses.cancel(events[0].response.id)
    assert cancelled.status == "cancelled"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text
    assert expected("hello", 400).startswith(text)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.to_dict() == cancelled.to_dict()
    assert cancelled.output_text == text


def test_what_only_the_worker_finds_out(slow: WorkerProcess, ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ai.responses.create(model=MODEL, input="untokenizable")
    assert (refused.value.code, refused.value.param) == ("tokenization_failed", "input")
    made = ai.responses.create(model=MODEL, input="x" * 5000, background=True)
    until(lambda: ai.responses.retrieve(made.id).status == "failed")
    error = ai.responses.retrieve(made.id).error
    assert error is not None
    assert error.code == "invalid_prompt"
    assert "[context_length_exceeded]" in error.message


def test_a_background_stream_is_taken_up_again_though_its_worker_was_killed(
    slow: WorkerProcess, redis_url: str, tmp_path: Path, ai: openai.OpenAI
) -> None:
    stream: Any = ai.responses.create(model=MODEL, input="hello", max_output_tokens=120, stream=True, background=True)
    seen: list[Any] = []
    for event in stream:
        seen.append(event)
        if len(seen) == 8:
            break
    stream.close()
    slow.kill()
    id_ = seen[0].response.id
    heir = WorkerProcess(redis_url, tmp_path)
    heir.start()
    seen += list(ai.responses.retrieve(id_, stream=True, starting_after=seen[-1].sequence_number))
    heir.stop()
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert text == expected("hello", 120) == seen[-1].response.output_text
    replay = ai.responses.retrieve(id_, stream=True)
    assert [event.to_dict() for event in replay] == [event.to_dict() for event in seen]
