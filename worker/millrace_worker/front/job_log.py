"""One line of the log for each job that ends here."""

from __future__ import annotations

from typing import Any

import structlog

from millrace_schemas import Request, Result
from millrace_schemas.trace_context import trace_id_of
from millrace_worker.stream.closing import Ending

log = structlog.get_logger(__name__)


def log_end(ending: Ending, *, texts: bool) -> None:
    """`texts`: with what was asked and answered. Only then also with the error's words, which may quote the prompt."""
    result, request = ending.result, ending.request
    timings, usage = result.timings, result.usage
    fields: dict[str, Any] = {
        "job": result.id,
        "model": result.model,
        "lane": str(ending.lease.lane),
        "state": str(result.state),
        "attempt": result.attempts,
        "prompt_tokens": usage.prompt_tokens,
        "tokens": usage.completion_tokens,
        "cached": usage.cached_tokens,
        "queued": round(timings.queued, 4),
        "ttft": None if timings.ttft is None else round(timings.ttft, 4),
        "total": round(timings.total, 4),
    }
    if result.error is not None:
        fields["code"] = str(result.error.code)
    if request is not None and request.tenant:
        fields["tenant"] = request.tenant
    if request is not None and request.traceparent is not None:
        fields["trace_id"] = trace_id_of(request.traceparent)
    if result.location is not None:
        fields["location"] = result.location
    if texts:
        fields |= _texts(request, result)
    log.info("job ended", **fields)


def _texts(request: Request | None, result: Result) -> dict[str, Any]:
    found: dict[str, Any] = {"answer": result.text}
    if request is not None and request.messages is not None:
        found["messages"] = [{"role": str(m.role), "content": m.content} for m in request.messages]
    elif request is not None:
        found["prompt"] = request.prompt if request.prompt is not None else list(request.prompt_token_ids or ())
    if result.error is not None:
        found["error"] = result.error.message
    return found
