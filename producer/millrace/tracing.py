"""Which trace the running code belongs to. Jobs that are submitted take it along."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from millrace_schemas.telemetry import SCOPE
from millrace_schemas.trace_context import is_traceparent

_given: ContextVar[str | None] = ContextVar("millrace_traceparent", default=None)


@contextmanager
def continued(traceparent: str | None) -> Iterator[None]:
    """Jobs submitted inside belong to this trace, unless an OpenTelemetry span is active.

    One that is malformed counts as none, as the standard wants it.
    """
    token = _given.set(traceparent if traceparent is not None and is_traceparent(traceparent) else None)
    try:
        yield
    finally:
        _given.reset(token)


@contextmanager
def submitting(count: int) -> Iterator[None]:
    """A span of OpenTelemetry's around the submission of `count` jobs, in programs that use it."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        yield
        return
    attributes = {"messaging.system": "millrace", "messaging.batch.message_count": count}
    span = api.get_tracer(SCOPE).start_span("millrace submit", kind=api.SpanKind.PRODUCER, attributes=attributes)
    # What goes wrong may quote a prompt: only that it did is noted.
    with api.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except BaseException:
            span.set_status(api.Status(api.StatusCode.ERROR))
            raise


def current_traceparent() -> str | None:
    """That of OpenTelemetry's active span, else the one that `continued` was given."""
    # A program that has not imported OpenTelemetry has no span, and need not wait for the import.
    api = sys.modules.get("opentelemetry.trace")
    if api is not None:
        context = api.get_current_span().get_span_context()
        if context.is_valid:
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    return _given.get()
