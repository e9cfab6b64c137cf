"""Whose request it is: middleware that knows API keys, and makes the client that each request is served with."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millrace import AsyncClient
from millrace.api_keys import ApiKey
from millrace.connection import Connection
from millrace.openai_api.rate_headers import rate_headers
from millrace.rates import Meter
from millrace_schemas import QueueUnavailable

from .caller import CLIENT
from .credentials import given_key
from .errors import ApiError, as_api_error, respond
from .key_cache import KeyCache


class Access(Enum):
    """Who may ask for something."""

    EVERYBODY = auto()
    KEY = auto()
    OPERATOR = auto()


_PUBLIC = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs"})
_PUBLIC_FOLDERS = ("/page/", "/docs/")
_OPERATORS = frozenset({"/", "/status.json", "/metrics"})


def access_to(path: str) -> Access:
    """Who may ask for `path`. What is not named here needs a key."""
    # A route's pattern ends in $, which takes a line break behind it, too.
    path = path.removesuffix("\n")
    if path in _PUBLIC or path.startswith(_PUBLIC_FOLDERS):
        return Access.EVERYBODY
    return Access.OPERATOR if path in _OPERATORS else Access.KEY


class Authenticate:
    """Answers 401, 403 or 503 without reading a body, or passes the request on with its key's view of `client`.

    With `required` false, a request without a live key is served as the queue's own producer, whatever it has for one.
    """

    def __init__(
        self, app: ASGIApp, *, client: AsyncClient, connection: Connection, keys: KeyCache, required: bool
    ) -> None:
        self._app = app
        self._client = client
        self._connection = connection
        self._keys = keys
        self._required = required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or access_to(scope["path"]) is Access.EVERYBODY:
            await self._app(scope, receive, send)
            return
        try:
            key = await self._authenticate(scope)
        except ApiError as e:
            await respond(e)(scope, receive, send)
            return
        if key is None:
            await self._app(scope, receive, send)
            return
        meter = self._meter(key)
        scope[CLIENT] = self._client.for_tenant(
            key.tenant,
            max_jobs=key.max_jobs,
            sees_all=key.operator,
            meter=meter,
            results_to=None if key.operator else key.results_to,
        )
        await self._app(scope, receive, send if meter is None else _tell(meter, send))

    async def _authenticate(self, scope: Scope) -> ApiKey | None:
        """The request's key; None when it needs none. Raises ApiError."""
        headers = Headers(scope=scope)
        access, given = access_to(scope["path"]), given_key(headers, scope["method"])
        key = None if given is None else await self._find(*given, _closing(headers))
        if key is None:
            if self._required:
                raise _no_key(access, headers)
            return None
        if access is Access.OPERATOR and not key.operator:
            raise ApiError(
                403,
                f"key {key.id} is no operator's, and this shows the queues of everybody; "
                "`millrace keys create --operator` makes one",
                code="operator_key_required",
                headers=_closing(headers),
            )
        return key

    async def _find(self, key_id: str, secret: str, closing: Mapping[str, str]) -> ApiKey | None:
        try:
            return await self._keys.find(key_id, secret)
        except QueueUnavailable as e:
            error = as_api_error(e)
            error.headers |= closing
            raise error from e

    def _meter(self, key: ApiKey) -> Meter | None:
        if not (key.requests_per_minute or key.tokens_per_minute):
            return None
        return Meter(
            self._connection,
            key.id,
            requests_per_minute=key.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute,
        )


def _no_key(access: Access, headers: Headers) -> ApiError:
    if headers.get("authorization", ""):
        message = "this API key is not known here, or it was revoked or has expired"
    else:
        message = "give an API key, in the header Authorization: Bearer mk_... or as the password of HTTP Basic"
    # A browser asks its user for the latter.
    challenge = "Bearer" if access is Access.KEY else "Basic"
    charset = "" if access is Access.KEY else ', charset="UTF-8"'
    return ApiError(
        401,
        message,
        code="invalid_api_key",
        headers={"www-authenticate": f'{challenge} realm="millrace"{charset}', **_closing(headers)},
    )


def _closing(headers: Headers) -> dict[str, str]:
    """For an answer that leaves the body unread: the rest of it is then not waited for."""
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    return {"connection": "close"} if has_body else {}


def _tell(meter: Meter, send: Send) -> Send:
    """`send`, with what the key has left in the headers once something was counted."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start" and meter.allowances:
            headers = MutableHeaders(scope=message)
            for name, value in rate_headers(meter.allowances).items():
                headers[name] = value
        await send(message)

    return tell
