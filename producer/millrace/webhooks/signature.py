"""Signatures of the Standard Webhooks specification (https://www.standardwebhooks.com), symmetric scheme `v1`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from email.message import Message
from typing import TypeAlias

import msgspec

from millrace_schemas import MillraceError

from .event import Event

_PREFIX = "whsec_"
_SECRET_BYTES = 32
ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER = "webhook-id", "webhook-timestamp", "webhook-signature"
#: Also as http.server has them, which is no Mapping.
Headers: TypeAlias = Mapping[str, str] | Message | Iterable[tuple[str, str]]


class InvalidSignature(MillraceError, ValueError):
    """A request is not a webhook of ours, or not a fresh one: answer 400 and forget it."""


def new_secret() -> str:
    """`whsec_` and 32 random bytes in base64."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(body: bytes, event_id: str, timestamp: int, signing: Sequence[str]) -> dict[str, str]:
    """The headers that prove `body`, with one signature for each of the secrets."""
    signatures = " ".join(f"v1,{_digest(secret, event_id, str(timestamp), body)}" for secret in signing)
    return {ID_HEADER: event_id, TIMESTAMP_HEADER: str(timestamp), SIGNATURE_HEADER: signatures}


def verify(
    body: bytes | str,
    headers: Headers,
    secret: str | Sequence[str],
    tolerance: float = 300,
) -> Event:
    """The event in a webhook's request, once it is clear that it comes from Millrace.

    `body` is the body as it arrived, not decoded and encoded again. `headers` are the request's, in any case. `secret`
    is what `millrace webhooks secret` prints; several are tried in turn. `tolerance` is how far the time of the call
    may be from that of this machine, in seconds: it keeps what somebody overheard from being played again for ever.

    Raises InvalidSignature, and ValueError when `secret` is none.
    """
    data = body.encode() if isinstance(body, str) else body
    event_id, timestamp, signatures = _read_headers(headers)
    if not timestamp.isascii() or not timestamp.isdecimal() or len(timestamp) > 15:
        raise InvalidSignature(f"{TIMESTAMP_HEADER} is not a number of seconds")
    keys = [secret] if isinstance(secret, str) else list(secret)
    expected = [_digest(key, event_id, timestamp, data).encode() for key in keys]
    given = [value.encode() for version, _, value in (s.partition(",") for s in signatures.split()) if version == "v1"]
    if not any(hmac.compare_digest(one, other) for one in expected for other in given):
        raise InvalidSignature("no signature fits: another secret, or another body than the one that was sent")
    if abs(time.time() - int(timestamp)) > tolerance:
        raise InvalidSignature(f"{TIMESTAMP_HEADER} is more than {tolerance:g} seconds from now")
    try:
        return msgspec.json.decode(data, type=Event)
    except msgspec.DecodeError as e:
        raise InvalidSignature(f"the body is signed, but no event: {e}") from e


def _read_headers(headers: Headers) -> tuple[str, str, str]:
    pairs = headers.items() if isinstance(headers, Mapping | Message) else headers
    found = {name.lower(): value for name, value in pairs}
    missing = [name for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER) if not found.get(name)]
    if missing:
        raise InvalidSignature(f"there is no header {missing[0]}")
    return found[ID_HEADER], found[TIMESTAMP_HEADER], found[SIGNATURE_HEADER]


def _digest(secret: str, event_id: str, timestamp: str, body: bytes) -> str:
    signed = b".".join((event_id.encode(), timestamp.encode(), body))
    return base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError("a webhook's secret looks like whsec_ and base64, as `millrace webhooks secret` prints it")
    return key
