"""A span for each job that ends here, made afterwards from the times that are known anyway."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from millrace_schemas.telemetry import SCOPE
from millrace_worker.stream.closing import Ending


class JobSpans:
    """`clock_offset` is Redis time minus this machine's clock: spans are in the latter."""

    def __init__(self, worker: str, clock_offset: Callable[[], float]):
        self._worker = worker
        self._offset = clock_offset
        self._tracer = trace.get_tracer(SCOPE)

    def ended(self, ending: Ending, now: float) -> None:
        """A job whose end was written at `now`, Redis time: one span, and one below it for each part of its life."""
        leased, result = ending.leased, ending.result
        if leased is None:
            # It expired in the queue; nobody did anything.
            return
        first_attempt = result.attempts <= 1
        begin = leased.created_at if first_attempt else leased.leased_at
        span = self._tracer.start_span(
            "millrace job",
            _parent(ending),
            SpanKind.CONSUMER,
            attributes=self._attributes(ending),
            start_time=self._at(begin),
        )
        inside = trace.set_span_in_context(span)
        done = leased.created_at + result.timings.total
        if first_attempt:
            self._part(inside, "queue", leased.created_at, leased.leased_at)
        if result.timings.ttft is not None:
            first = min(done, leased.leased_at + result.timings.ttft)
            self._part(inside, "prefill", leased.leased_at, first)
            self._part(inside, "decode", first, done)
        self._part(inside, "write result", done, now)
        if result.error is not None:
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._at(max(now, begin)))

    def _part(self, inside: Context, name: str, begin: float, end: float) -> None:
        span = self._tracer.start_span(name, inside, start_time=self._at(begin))
        span.end(self._at(max(begin, end)))

    def _at(self, redis_time: float) -> int:
        """Nanoseconds of this machine's clock."""
        return int((redis_time - self._offset()) * 1e9)

    def _attributes(self, ending: Ending) -> dict[str, AttributeValue]:
        result, request = ending.result, ending.request
        found: dict[str, AttributeValue] = {
            "millrace.job.id": result.id,
            "millrace.job.state": str(result.state),
            "millrace.job.attempt": result.attempts,
            "millrace.lane": str(ending.lease.lane),
            "millrace.worker": self._worker,
            "millrace.cached_tokens": result.usage.cached_tokens,
            "gen_ai.request.model": result.model,
            "gen_ai.usage.input_tokens": result.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": result.usage.completion_tokens,
        }
        if request is not None and request.tenant:
            found["millrace.tenant"] = request.tenant
        if result.error is not None:
            found["error.type"] = str(result.error.code)
        if result.location is not None:
            found["millrace.result.location"] = result.location
        return found


def _parent(ending: Ending) -> Context:
    """The span that submitted the job, as a context; an empty one when nobody said."""
    traceparent = ending.request.traceparent if ending.request is not None else None
    if traceparent is None:
        return Context()
    _, trace_id, span_id, flags = traceparent.split("-")
    context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return trace.set_span_in_context(NonRecordingSpan(context), Context())
