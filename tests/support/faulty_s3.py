"""A proxy before a real S3 server that delays, holds, refuses or breaks chosen requests."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

_ERRORS = {
    "InternalError": 500, "SlowDown": 503, "AccessDenied": 403, "NoSuchBucket": 404, "NoSuchKey": 404,
}  # fmt: skip


@dataclass
class Fault:
    """What happens to requests with `method` and `part` in their path and query; `times`: how often, None: always.

    `kind` is an error code of S3, or: "delay" by `seconds`, "hold" until `released`, "reset" of the connection before
    the request is passed on, "truncate" the answer in its middle.
    """

    method: str
    part: str
    kind: str
    times: int | None = None
    seconds: float = 0.0
    met: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    #: Requests that were passed on after a delay or a hold, and answered by the server.
    passed: int = 0


class FaultyS3:
    """Forwards to `port`; signatures stay right, as the Host header is passed on."""

    def __init__(self, port: int):
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        #: Methods and paths of all requests.
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, port))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, method: str, part: str, kind: str, times: int | None = None, seconds: float = 0.0) -> Fault:
        """The first fault that fits a request is what happens to it."""
        fault = Fault(method, part, kind, times, seconds)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        with self._lock:
            for fault in self._faults:
                fault.released.set()
            self._faults.clear()

    def meets(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self._faults:
                spent = fault.times is not None and fault.met >= fault.times
                if not spent and fault.method in (method, "*") and fault.part in path:
                    fault.met += 1
                    return fault
        return None

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(proxy: FaultyS3, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fault = proxy.meets(self.command, self.path)
            kind = "" if fault is None else fault.kind
            if kind in _ERRORS:
                self._refuse(kind)
                return
            if kind == "reset":
                self._reset()
                return
            if fault is not None and kind == "delay":
                time.sleep(fault.seconds)
            if fault is not None and kind == "hold":
                fault.released.wait(60)
            self._forward(body, cut=kind == "truncate")
            if fault is not None:
                fault.passed += 1

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do  # noqa: N815

        def _forward(self, body: bytes, *, cut: bool) -> None:
            server = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            # Whoever asked may be gone by now.
            with contextlib.suppress(ConnectionError):
                server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() != "expect":
                        server.putheader(name, value)
                server.endheaders(body)
                answer = server.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                length = answer.headers.get("content-length") if self.command == "HEAD" else str(len(data))
                self.send_header("content-length", length or "0")
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self._reset()
            server.close()

        def _refuse(self, code: str) -> None:
            body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>told to</Message></Error>'.encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(_ERRORS[code])
                self.send_header("content-type", "application/xml")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

        def _reset(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler
