"""A job's events as OpenAI's typed, numbered ones.

The numbers follow from the order of the job's events alone, which never changes: every reading of a job gives the same
numbers, so a client goes on behind the last one it saw, whichever gateway it asks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from millrace import Event, EventStream, Finished, JobState, Result, Started, TokenLogprob, Tokens
from millrace.openai_api.logprobs import event_logprobs
from millrace.openai_api.responses_object import Answer, has_output, item_status, logprobs_of, status_of, text_part

from .errors import ApiError
from .sse import event

#: How a stream ends. OpenAI has no event for `cancelled`: nothing failed, but the answer is not whole.
_LAST = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}


class Narration:
    """Tells one job; `starting_after` is the number of the last event that the reader has, -1: none."""

    def __init__(self, answer: Answer, stream: EventStream, starting_after: int = -1):
        self._answer = answer
        self._stream = stream
        self._next = 0
        self._told = starting_after
        self._started = False
        self._text: str | None = None
        self._logprobs: list[TokenLogprob] = []

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._wanted(self._begin()):
            yield chunk
        async for happened in self._stream:
            for chunk in self._wanted(self._tell(happened)):
                yield chunk

    def error_event(self, error: ApiError) -> bytes:
        """For a stream that breaks off. It is no part of the story, so it has the number of the event before it:
        whoever goes on behind that number misses nothing."""
        told = max(self._told, 0)
        body = {"code": error.code, "message": error.message, "param": error.param, "sequence_number": told}
        return event({"type": "error", **body}, name="error")

    def _wanted(self, events: Iterator[dict[str, Any]]) -> Iterator[bytes]:
        for body in events:
            number, self._next = self._next, self._next + 1
            if number > self._told:
                self._told = number
                yield event({**body, "sequence_number": number}, name=body["type"])

    def _begin(self) -> Iterator[dict[str, Any]]:
        answer = self._answer
        state = JobState.QUEUED if answer.background else JobState.IN_PROGRESS
        yield {"type": "response.created", "response": answer.waiting(state)}
        if answer.background:
            yield {"type": "response.queued", "response": answer.waiting(state)}

    def _tell(self, happened: Event) -> Iterator[dict[str, Any]]:
        if isinstance(happened, Started):
            # Further ones are other attempts, which go on where the one before them stopped.
            if not self._started:
                self._started = True
                yield {"type": "response.in_progress", "response": self._answer.waiting(JobState.IN_PROGRESS)}
        elif isinstance(happened, Tokens):
            yield from self._more(happened.text, happened.logprobs or ())
        elif isinstance(happened, Finished):
            yield from self._end(happened.result)

    def _more(self, text: str, logprobs: Sequence[TokenLogprob]) -> Iterator[dict[str, Any]]:
        if not text and not logprobs:
            return
        yield from self._open()
        self._text = (self._text or "") + text
        self._logprobs += logprobs
        told = event_logprobs(logprobs)
        yield {"type": "response.output_text.delta", **self._place(), "delta": text, "logprobs": told}

    def _open(self) -> Iterator[dict[str, Any]]:
        if self._text is not None:
            return
        self._text = ""
        item = self._answer.item("in_progress", None)
        yield {"type": "response.output_item.added", "output_index": 0, "item": item}
        yield {"type": "response.content_part.added", **self._place(), "part": text_part("")}

    def _end(self, result: Result) -> Iterator[dict[str, Any]]:
        if has_output(result):
            yield from self._open()
        if self._text is not None:
            if result.text.startswith(self._text):
                # A job's last events go when their time to live is over; its result has the whole text.
                rest = logprobs_of(result)[len(self._logprobs) :]
                yield from self._more(result.text[len(self._text) :], rest)
            text, logprobs = self._text, self._logprobs
            told = event_logprobs(logprobs)
            yield {"type": "response.output_text.done", **self._place(), "text": text, "logprobs": told}
            yield {"type": "response.content_part.done", **self._place(), "part": text_part(text, logprobs)}
            item = self._answer.item(item_status(result), text, logprobs)
            yield {"type": "response.output_item.done", "output_index": 0, "item": item}
        yield {"type": _LAST[status_of(result)], "response": self._answer.ended(result)}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._answer.item_id, "output_index": 0, "content_index": 0}
