"""A batch as OpenAI's Batch object."""

from __future__ import annotations

from typing import Any

from millrace_schemas.batch import BatchStatus

from .store import View

_TIMES = (
    "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at",
)  # fmt: skip


def status_of(view: View) -> BatchStatus:
    """A cancellation counts from when it was asked for, though its worker may not have seen it yet."""
    status = view.batch.status
    if view.cancel is not None and status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
        return BatchStatus.CANCELLING
    return status


def describe(view: View) -> dict[str, Any]:
    """Also `problem`, which OpenAI has not: why it does not move."""
    batch, progress = view.batch, view.progress
    times: dict[str, float | None] = {name: getattr(batch, name) for name in _TIMES}
    if times["cancelling_at"] is None and status_of(view) is BatchStatus.CANCELLING:
        times["cancelling_at"] = view.cancel
    errors = [
        {"code": error.code, "message": error.message, "line": error.line, "param": error.param}
        for error in batch.errors
    ]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": status_of(view),
        "output_file_id": batch.output_file_id or None,
        "error_file_id": batch.error_file_id or None,
        "created_at": int(batch.created_at),
        "expires_at": int(batch.expires_at),
        **{name: None if when is None else int(when) for name, when in times.items()},
        "request_counts": {"total": batch.total, "completed": progress.completed, "failed": progress.failed},
        "usage": {
            "input_tokens": progress.prompt_tokens,
            "input_tokens_details": {"cached_tokens": progress.cached_tokens},
            "output_tokens": progress.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": progress.prompt_tokens + progress.completion_tokens,
        },
        "metadata": batch.metadata or None,
        "problem": view.problem,
    }
