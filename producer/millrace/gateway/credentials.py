"""The key in a request's Authorization header."""

from __future__ import annotations

import base64
import binascii

from starlette.datastructures import Headers

from millrace.api_keys import split_key

#: No key is as long; nothing longer is looked at.
_LONGEST = 512
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def given_key(headers: Headers, method: str) -> tuple[str, str] | None:
    """Id and secret of the key that a request has as a bearer token, or as the password of HTTP Basic.

    None when it has none, or something that cannot be one.
    """
    header = headers.get("authorization", "")
    if len(header) > _LONGEST:
        return None
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return split_key(value.strip())
    # A browser adds Basic credentials to whatever a page of another site sends here, without being asked.
    if scheme.lower() == "basic" and (method in _SAFE or headers.get("sec-fetch-site", "none") in _OWN):
        return split_key(_password(value.strip()))
    return None


_OWN = frozenset({"none", "same-origin"})


def _password(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
