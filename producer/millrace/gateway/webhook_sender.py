"""One call of a webhook: resolve the name once, check every address, connect to what was checked, look at the status.

httpcore2 speaks HTTP and TLS. It reads no proxy from the environment, follows no redirect, and gets each of its
connections from `_CheckedBackend`, so nothing can be reached that was not checked. The name in the URL stays what it is
in the Host header, in SNI and in the check of the certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from .webhook_addresses import Allowed

#: The addresses of a host, for a port. Raises OSError.
Resolve = Callable[[str, int], Awaitable[list[str]]]

_PORTS = {"http": 80, "https": 443}
#: Addresses of a host that are tried, and seconds for each.
_ADDRESSES, _CONNECT_TIMEOUT = 4, 5.0
#: Most of an answer's body that is read, in bytes and seconds, for the receiver's sake: it is thrown away.
_BODY, _BODY_TIMEOUT = 4096, 1.0
_ERRORS = (
    httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError, ssl.SSLError, ValueError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended: a status, or why there is none."""

    status: int = 0
    reason: str = ""
    #: Seconds after which the receiver wants to be asked again; None: it does not say.
    retry_after: float | None = None

    @property
    def delivered(self) -> bool:
        return 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        """The receiver wants no more of this."""
        return self.status == 410

    @property
    def error(self) -> str:
        """One line; "" when it was delivered."""
        if self.delivered:
            return ""
        if 300 <= self.status < 400:
            return f"HTTP {self.status}: redirects are not followed; submit with the URL that is meant"
        return self.reason or f"HTTP {self.status}"


class _Refused(Exception):
    """An address that webhooks may not reach. No OSError: no other address is tried."""


class Sender:
    """Posts to receivers. Close it at the end."""

    def __init__(self, allowed: Allowed, timeout: float, resolve: Resolve | None = None):
        self._timeout = timeout
        # Its own threads: a name server that does not answer must not hold up what else runs in threads.
        self._threads = ThreadPoolExecutor(32, thread_name_prefix="webhook-dns")
        self._backend = _CheckedBackend(allowed, resolve or self._look_up)
        self._tls = ssl.create_default_context()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Raises nothing but what cancels it."""
        answers: list[Answer] = []
        try:
            async with asyncio.timeout(self._timeout):
                await self._post(url, body, headers, answers.append)
        except TimeoutError:
            reason = f"no answer within {self._timeout:g} s"
        except _Refused as e:
            reason = str(e)
        except _ERRORS as e:
            reason = _explain(e)
        # What goes wrong behind the status changes nothing.
        return answers[0] if answers else Answer(reason=reason)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _post(
        self, url: str, body: bytes, headers: Mapping[str, str], answered: Callable[[Answer], None]
    ) -> None:
        """Says what the status was as soon as it is there."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        place = httpcore2.URL(scheme=parts.scheme, host=host, port=port, target=target)
        sent = {"host": parts.netloc, "content-type": "application/json", "connection": "close", **headers}
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(place.scheme, place.host, port), ssl_context=self._tls, network_backend=self._backend
        )
        try:
            async with connection.stream("POST", place, headers=list(sent.items()), content=body) as response:
                answered(Answer(response.status, retry_after=_retry_after(response.headers)))
                async with asyncio.timeout(_BODY_TIMEOUT):
                    await _drain(response)
        finally:
            await connection.aclose()

    async def _look_up(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connections to checked addresses only."""

    def __init__(self, allowed: Allowed, resolve: Resolve):
        self._allowed = allowed
        self._resolve = resolve
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises _Refused when any address of the host is not allowed: an honest name has no private ones beside."""
        addresses = list(dict.fromkeys(await self._addresses(host, port)))
        for address in addresses:
            if not self._allowed.permits(host, address):
                # Not which address it is: whoever made the job need not learn what names mean in this network.
                raise _Refused(f"{host} is no public address; `millrace gateway --webhook-allow` can open it")
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in addresses[:_ADDRESSES]:
            try:
                # A literal address: nothing is looked up again.
                return await self._network.connect_tcp(address, port, _CONNECT_TIMEOUT, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as e:
                failure = e
        raise failure

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            return await self._resolve(host, port)
        except (OSError, UnicodeError) as e:
            raise httpcore2.ConnectError(f"the name {host} cannot be resolved") from e


async def _drain(response: httpcore2.Response) -> None:
    size = 0
    async for chunk in response.aiter_stream():
        size += len(chunk)
        if size >= _BODY:
            return


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Seconds from now; None when the header is not there, or says nothing usable."""
    text = next((value for name, value in headers if name.lower() == b"retry-after"), b"").decode("latin-1").strip()
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _explain(error: Exception) -> str:
    """One line for whoever made the job."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {cause.reason or cause}"
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())[:200]
    if isinstance(error, httpcore2.ConnectTimeout):
        return f"no connection within {_CONNECT_TIMEOUT:g} s"
    if isinstance(error, httpcore2.ConnectError):
        return f"no connection: {text or 'refused'}"
    if isinstance(error, httpcore2.ProtocolError):
        return f"no HTTP answer: {text}"
    return f"the connection broke: {text or type(error).__name__}"
