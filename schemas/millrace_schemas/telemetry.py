"""OpenTelemetry's SDK for Millrace's own processes, where its standard environment asks for it (extra: otel)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .errors import MillraceError

#: Of every span that Millrace makes.
SCOPE = "millrace"


class TracingNotPossible(MillraceError):
    """OTEL_* asks for traces that this installation cannot send."""


def wants_traces(environ: Mapping[str, str]) -> bool:
    """Whether OTEL_* names somebody to send traces to.

    Raises TracingNotPossible for another exporter than otlp.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter not in ("", "none", "otlp"):
        raise TracingNotPossible(f"OTEL_TRACES_EXPORTER={exporter!r}: Millrace exports with otlp (over HTTP), or none")
    named = any(environ.get(f"OTEL_EXPORTER_OTLP_{name}") for name in ("ENDPOINT", "TRACES_ENDPOINT"))
    return exporter == "otlp" or (exporter == "" and named)


def start_tracing(service: str) -> Callable[[], None]:
    """Sends this process' spans as OTEL_* says, as `service` unless OTEL_SERVICE_NAME is set; returns what ends it.

    Spans are sent by a thread. Its end sends what is left, and waits for that as long as OTEL_BSP_EXPORT_TIMEOUT.
    Raises TracingNotPossible without the packages.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as e:
        raise TracingNotPossible(f'OTEL_* asks for traces ({e}); run: pip install "millrace[otel]"') from e
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown
