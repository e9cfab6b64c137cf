"""From a row to the arguments of its job, and from the job's result to a line of the output or error file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from millrace.async_job import raise_unless_completed
from millrace.openai_api import chat, completions, responses_body
from millrace.openai_api.errors import ApiError, invalid
from millrace.openai_api.params import rename
from millrace.openai_api.responses_object import Answer
from millrace.openai_api.shapes import whole_answer
from millrace_schemas import JobState, MillraceError, Request, Result
from millrace_schemas.batch import Batch
from millrace_schemas.job import job_id_of

from .rows import CHAT, COMPLETIONS, Row

_ENCODER = msgspec.json.Encoder()
EXPIRED = "batch_expired"
CANCELLED = "batch_cancelled"
_REASONS = {
    EXPIRED: "This request could not be executed before the completion window expired.",
    CANCELLED: "This request was not executed, as the batch was cancelled.",
}
_NAMES: Mapping[str, Mapping[str, str]] = {
    CHAT: {**chat.SHAPE.names},
    COMPLETIONS: {**completions.SHAPE.names},
}


def fields_of(row: Row) -> dict[str, Any]:
    """Arguments of `submit`. Raises ApiError naming the parameter."""
    if row.fault is not None:
        raise row.fault
    if row.url == CHAT:
        fields = chat.read_chat(row.body).fields
    elif row.url == COMPLETIONS:
        fields = completions.read_completion(row.body).fields
    else:
        asked = responses_body.read_response(row.body)
        if asked.background:
            raise invalid("background has no meaning in a batch; leave it out", param="background")
        fields = asked.fields
        if "webhook" in fields:
            # Its job is gone as soon as it is collected, and nobody could be told of it.
            raise invalid("webhook has no meaning in a line; give it to the batch", param="webhook")
    if fields["stream"]:
        raise invalid("stream must be false in a batch", param="stream")
    return fields


def line_job_id(batch: Batch, queue: str, number: int) -> str:
    """The id of a line's job: the same whenever it is asked for, so that a line never has two jobs.

    It has the layout of all ids: 48 bits of milliseconds, here the batch's, then 80 that nobody can guess.
    """
    digest = hashlib.blake2b(b"%b:%d" % (batch.id.encode(), number), digest_size=10).digest()
    return job_id_of(queue, int(batch.created_at * 1000), int.from_bytes(digest))


def answered(url: str, job_id: str, custom_id: str, result: Result, request: Request | None) -> tuple[bytes, bool]:
    """The line for a job's result, and whether it is one of the output file."""
    try:
        raise_unless_completed(result)
    except MillraceError as e:
        if result.state in (JobState.CANCELLED, JobState.EXPIRED):
            code = EXPIRED if result.state is JobState.EXPIRED else "cancelled"
            return unanswered(job_id, custom_id, code, _REASONS.get(code, str(e))), False
        return refused(url, job_id, custom_id, e), False
    body: dict[str, Any]
    if url == CHAT:
        body = whole_answer(job_id, result, chat.SHAPE)
    elif url == COMPLETIONS:
        body = whole_answer(job_id, result, completions.SHAPE)
    else:
        assert request is not None
        body = Answer(job_id, request).ended(result)
    return _line(job_id, custom_id, {"status_code": 200, "request_id": job_id, "body": body}, None), True


def refused(url: str, job_id: str, custom_id: str, error: MillraceError | ApiError) -> bytes:
    """The line of a request that would have had an HTTP error for an answer."""
    if not isinstance(error, ApiError):
        error = rename(error, _NAMES.get(url, responses_body.NAMES))
    return _line(
        job_id, custom_id, {"status_code": error.status, "request_id": job_id, "body": error.body()}, None
    )  # fmt: skip


def unanswered(job_id: str, custom_id: str, code: str, message: str | None = None) -> bytes:
    """The line of a request that never was answered, not even with an error of its own."""
    return _line(job_id, custom_id, None, {"code": code, "message": message or _REASONS[code]})


def _line(job_id: str, custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    line = {"id": f"batch_req_{job_id}", "custom_id": custom_id, "response": response, "error": error}
    return _ENCODER.encode(line) + b"\n"
