"""One trace through `millrace gateway`, the queue, a worker and S3, as OpenTelemetry's receivers get it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from gateway_process import SECRET, TRACE, ask, running_gateway
from millrace.config import traces_wanted
from millrace_schemas.telemetry import TracingNotPossible
from queue_probe import MODEL
from servers import S3Server
from span_receiver import SpanReceiver, attributes_of
from worker_process import WorkerProcess


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> SpanReceiver:
    """For the processes of a test; to be entered."""
    receiver = SpanReceiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    return receiver


def test_one_trace_through_everything(redis_url: str, tmp_path: Path, s3_env: S3Server, traced: SpanReceiver) -> None:
    with traced, WorkerProcess(redis_url, tmp_path) as worker, running_gateway(redis_url, tmp_path / "log") as http:
        job_id = ask(http, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
        body = {"model": MODEL, "prompt": "to S3", "result_to": "s3://answers/x", "sampling": {"max_tokens": 5}}
        http.post("/v1/jobs", json=body, headers={"traceparent": f"00-{TRACE}-00000000000000aa-01"})
        http.get("/healthz")
        jobs = {attributes_of(span)["millrace.job.id"]: span for _, span in traced.until("millrace job", 2)}
        traced.until("POST /v1/chat/completions", 1)
        traced.until("POST /v1/jobs", 1)
        traced.until("millrace submit", 2)
        assert TRACE in worker.log
    by_id = {span.span_id: (service, span) for service, span in traced.spans}
    job = jobs.pop(job_id)
    submit_service, submit = by_id[job.parent_span_id]
    request_service, request = by_id[submit.parent_span_id]
    assert (submit.name, request.name) == ("millrace submit", "POST /v1/chat/completions")
    assert submit_service == request_service == "millrace-gateway"
    assert by_id[job.span_id][0] == "millrace-worker"
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert {span.trace_id.hex() for _, span in traced.spans} == {TRACE}
    assert attributes_of(request)["http.response.status_code"] == 200
    found = attributes_of(job)
    assert (found["millrace.job.state"], found["gen_ai.request.model"]) == ("completed", MODEL)
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (len(SECRET), 5)

    parts = [span for _, span in traced.spans if span.parent_span_id == job.span_id]
    assert [part.name for part in parts] == ["queue", "prefill", "decode", "write result"]
    for before, after in itertools.pairwise(parts):
        assert before.start_time_unix_nano <= before.end_time_unix_nano == after.start_time_unix_nano
    assert job.start_time_unix_nano == parts[0].start_time_unix_nano
    assert job.end_time_unix_nano == parts[-1].end_time_unix_nano
    (stored,) = jobs.values()
    assert attributes_of(stored)["millrace.result.location"].startswith("s3://answers/x/")
    assert "GET /healthz" not in {span.name for _, span in traced.spans}
    assert SECRET not in str(traced.spans)


def test_jobs_without_a_trace_begin_one(redis_url: str, tmp_path: Path, traced: SpanReceiver) -> None:
    """And a worker that ends sends what it has."""
    with traced:
        with WorkerProcess(redis_url, tmp_path) as worker:
            # A producer of its own, that knows nothing of traces.
            code = f"from millrace import Client; c = Client({redis_url!r}); c.submit('untokenizable').wait(20)"
            subprocess.run([sys.executable, "-c", code], check=True)
            assert worker.stop() == 0
        ((_, job),) = traced.until("millrace job", 1)
    assert job.parent_span_id == b""
    assert job.status.code == 2
    assert attributes_of(job)["error.type"] == "tokenization_failed"


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4318"}, False),
    ],
)
def test_who_asks_for_traces(environ: dict[str, str], wanted: bool) -> None:
    assert traces_wanted(environ) is wanted


def test_another_exporter_is_one_line() -> None:
    with pytest.raises(TracingNotPossible, match="OTEL_TRACES_EXPORTER='zipkin'"):
        traces_wanted({"OTEL_TRACES_EXPORTER": "zipkin"})
