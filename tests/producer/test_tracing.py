"""Jobs belong to the trace of the code that submits them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from millrace import Request
from millrace.testing import FakeMillrace
from millrace.tracing import continued, current_traceparent

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-" + "1" * 32 + "-" + "2" * 16 + "-00"


def span() -> NonRecordingSpan:
    context = SpanContext(int("1" * 32, 16), int("2" * 16, 16), is_remote=False, trace_flags=TraceFlags(0))
    return NonRecordingSpan(context)


def test_where_a_trace_comes_from() -> None:
    assert current_traceparent() is None
    with continued(GIVEN):
        assert current_traceparent() == GIVEN
        with use_span(span()):
            assert current_traceparent() == OTHER
        with continued("nonsense"):
            assert current_traceparent() is None
        assert current_traceparent() == GIVEN
    assert current_traceparent() is None


def test_jobs_take_it_along() -> None:
    # The blocking client works in a thread of its own.
    with FakeMillrace() as fake, fake.client() as client:
        with use_span(span()):
            client.submit("hello")
            client.submit_many([{"prompt": "a"}, Request(model="demo", prompt="b", traceparent=GIVEN)])
        client.submit("hello")
        traces = [request.traceparent for request in fake.submitted]
    assert traces == [OTHER, OTHER, GIVEN, None]


@pytest.mark.parametrize("module", ["millrace", "millrace_worker.cli", "millrace.gateway.app"])
def test_all_of_it_works_where_opentelemetry_is_not_installed(module: str) -> None:
    code = (
        f"import sys; sys.modules['opentelemetry'] = None; import {module}\n"
        f"from millrace.tracing import continued, current_traceparent\n"
        f"with continued({GIVEN!r}): sys.exit(current_traceparent() != {GIVEN!r})"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
