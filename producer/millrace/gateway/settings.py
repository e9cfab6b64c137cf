"""Limits of the gateway."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    #: Whether each request is a line of the log.
    access_log: bool = False
    #: Whether each request is a span of OpenTelemetry's, which this process has set up then.
    traced: bool = False
    #: Names that requests may have in their Host header; None: any.
    allowed_hosts: frozenset[str] | None = None
    #: Whether requests need an API key. Where not, one that is live counts all the same, and all else does not matter.
    require_keys: bool = False
    #: Seconds that a key is remembered: a revocation counts everywhere after so many.
    key_seconds: float = 5.0
    #: Origins whose pages may call from a browser; "*" is all of them.
    cors_origins: tuple[str, ...] = ()
    #: Longest body of a request, in bytes. A job itself has at most MAX_JOB_BYTES; JSON may escape, and lists repeat.
    max_body_bytes: int = 16 * 1024 * 1024
    #: Arrays and objects within each other.
    max_json_depth: int = 32
    #: Seconds in which a body must have arrived.
    body_timeout: float = 60.0
    #: Seconds that a request for a whole answer may last; the job is then cancelled, unless others can ask for it.
    answer_timeout: float = 600.0
    #: Seconds between signs of life in a stream that has nothing to say; also the longest wait before its headers.
    keep_alive: float = 10.0
    #: Streams at once. About 130 share a connection to Redis; each costs a client's connection and some 30 KiB.
    max_streams: int = 4000
    #: Clients' connections at once, idle ones included.
    max_connections: int = 10_000
    #: Seconds in which a request's first line and headers must have arrived.
    header_timeout: float = 15.0
    #: Seconds that a connection may be idle after an answer; longer than load balancers keep theirs (60), so that it is
    #: they who close it and never send into a closed one.
    idle_timeout: float = 75.0
    #: Seconds for which a client may read nothing of an answer that is ready.
    write_timeout: float = 60.0
    #: Jobs in one POST to /v1/jobs.
    max_jobs: int = 1000
    #: Seconds between two looks at the queues, for the plots of the page.
    look_every: float = 5.0
    #: Seconds between two looks of an open page at the gateway.
    page_every: float = 2.0
    #: Longest `wait` of GET /v1/jobs/{id}, in seconds.
    max_wait: float = 60.0
    #: Prefix of what /v1/files keeps and of what batches write, as a URL; None: there are neither.
    files: str | None = None
    #: Longest file, in bytes, and seconds in which one must have arrived.
    max_file_bytes: int = 512 * 1024 * 1024
    upload_timeout: float = 600.0
