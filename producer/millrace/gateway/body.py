"""Reading requests: bounded bodies, JSON, and the Idempotency-Key header."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from millrace.openai_api.json_body import decode_body
from millrace_schemas.job import MAX_IDEMPOTENCY_KEY

from .errors import ApiError, invalid
from .settings import GatewaySettings

#: Bytes whose decoding would hold up everybody else; such bodies are decoded in a thread.
_LARGE = 256 * 1024


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body. Raises ApiError as `read_json` does, and when it is something else."""
    value = await read_json(request)
    if not isinstance(value, dict):
        raise invalid(f"the body must be a JSON object, not {_kind(value)}")
    return value


async def read_json(request: Request) -> Any:
    """The JSON value in the body.

    Raises ApiError: 415 for another type, 413 above `max_body_bytes` (what is left of the body is not read), 408 when
    it does not arrive in time, 400 when it is no JSON or nested too deeply.
    """
    settings: GatewaySettings = request.app.state.settings
    # A page in a browser may post text to any address; JSON it may not without asking first, and nobody answers that.
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "send JSON, with the header content-type: application/json", code="unsupported_media_type")
    data = await _read(request, settings)
    if len(data) > _LARGE:
        return await asyncio.to_thread(decode_body, data, settings.max_json_depth)
    return decode_body(data, settings.max_json_depth)


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key header: requests that share it make one job. Raises ApiError when it is too long."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_IDEMPOTENCY_KEY:
        raise invalid(
            f"Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY} characters, not {len(key)}", param="Idempotency-Key"
        )
    return key


async def _read(request: Request, settings: GatewaySettings) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > settings.max_body_bytes:
        raise _too_long(settings)
    data = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for chunk in request.stream():
                data += chunk
                if len(data) > settings.max_body_bytes:
                    raise _too_long(settings)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not arrive within {settings.body_timeout:g} s", code="request_timeout", headers=_CLOSE
        ) from None
    except ClientDisconnect:
        raise ApiError(499, "the client left while it sent its request", code="client_closed_request") from None
    return bytes(data)


#: The rest of a body that nobody wants would otherwise have to be read before the connection's next request.
_CLOSE = {"connection": "close"}


def _too_long(settings: GatewaySettings) -> ApiError:
    return ApiError(
        413, f"the body is longer than {settings.max_body_bytes:,} bytes", code="request_too_large", headers=_CLOSE
    )


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
