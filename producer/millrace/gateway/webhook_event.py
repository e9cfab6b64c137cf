"""What a receiver is told: that a job or batch has ended, and how. Never a prompt or an answer, which it may fetch."""

from __future__ import annotations

from typing import Any

import msgspec

from millrace.openai_api.responses_body import MARK
from millrace.openai_api.responses_object import response_id, status_of
from millrace.webhooks import Event
from millrace_schemas import Request, Result
from millrace_schemas.batch import Batch


def event_id(job_id: str) -> str:
    """One for each job or batch: each ends once. Without the queue's name: a dot would make signatures ambiguous."""
    return f"evt_{job_id[-26:]}"


def event_of(job_id: str, request: Request, result: Result, finished_at: float) -> bytes:
    """The body of a webhook, byte for byte the same for every call about this job."""
    if MARK in request.metadata:
        kind, data = f"response.{status_of(result)}", {"id": response_id(job_id)}
    else:
        kind, data = f"job.{result.state}", _data(job_id, request, result)
    return msgspec.json.encode(Event(id=event_id(job_id), type=kind, created_at=int(finished_at), data=data))


def event_of_batch(batch: Batch) -> bytes:
    """The same of a batch that has ended, as OpenAI has it."""
    ended_at = int(getattr(batch, f"{batch.status}_at") or 0)
    event = Event(id=event_id(batch.id), type=f"batch.{batch.status}", created_at=ended_at, data={"id": batch.id})
    return msgspec.json.encode(event)


def _data(job_id: str, request: Request, result: Result) -> dict[str, Any]:
    error = None if result.error is None else {"code": result.error.code, "message": result.error.message}
    return {
        "id": job_id,
        "model": request.model,
        "state": result.state,
        "metadata": request.metadata,
        "error": error,
        "usage": msgspec.to_builtins(result.usage),
    }
