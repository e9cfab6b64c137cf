"""A span for each request to a gateway that sends traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from millrace_schemas.telemetry import SCOPE

_PROPAGATOR = TraceContextTextMapPropagator()


@contextmanager
def request_span(method: str, traceparent: str | None) -> Iterator[Span]:
    """The current span until the request's end, below the caller's."""
    carrier = {} if traceparent is None else {"traceparent": traceparent}
    parent = _PROPAGATOR.extract(carrier, Context())
    span = trace.get_tracer(SCOPE).start_span(method, parent, SpanKind.SERVER)
    # What goes wrong may quote a prompt: only that it did is noted.
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        yield span


def describe(span: Span, method: str, route: str, status: int, job: str | None) -> None:
    """What is known at the end, under the names of OpenTelemetry's conventions."""
    span.update_name(f"{method} {route}")
    span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    if job is not None:
        span.set_attribute("millrace.job.id", job)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
