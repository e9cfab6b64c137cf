"""Pinned prefixes: beginnings of prompts that workers keep in their caches for as long as they are asked for."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from .errors import InvalidRequest

#: What a request may say about the prefix cache.
CacheMode = Literal["auto", "pin"]

#: Seconds that a pin lasts after its last use.
DEFAULT_CACHE_TTL = 3600.0
MIN_CACHE_TTL, MAX_CACHE_TTL = 60.0, 30 * 86_400.0
#: A pin counts as so many tokens, at least, towards the limits of a queue and a tenant.
LEAST_PIN_TOKENS = 256


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A beginning of prompts as the queue's workers are told it. `cache_salt` holds the tenant, too."""

    id: str
    token_ids: tuple[int, ...]
    cache_salt: str = ""


class PinTerms(NamedTuple):
    """What a queue knows of a pin without its tokens. As text: the fields in order, with spaces between them."""

    #: How many it has.
    tokens: int
    #: Seconds for which each use prolongs it.
    ttl: float
    #: Unix time of Redis.
    created_at: float
    tenant: str = ""

    @classmethod
    def parse(cls, text: bytes) -> PinTerms:
        tokens, ttl, created_at, tenant = text.decode().split(" ")
        return cls(int(tokens), float(ttl), float(created_at), tenant)


class HeldPin(msgspec.Struct, frozen=True, kw_only=True):
    """A pin in one worker's cache."""

    id: str
    #: The fastest that holds all of its full blocks: "gpu", "cpu", "disk" or "s3"; "" while none does.
    tier: str = ""
    #: Full blocks, and the bytes of their KV in one tier.
    blocks: int = 0
    bytes: int = 0
    #: Sequences that began with all of it since the worker started.
    hits: int = 0
    #: Why it is not in the fastest tier; "" when it is, or is on its way.
    problem: str = ""


class WorkerCache(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of its cache. Unknown fields are skipped: it is a notice."""

    worker: str
    #: Unix time.
    at: float
    pins: tuple[HeldPin, ...] = ()


def pin_id(cache_salt: str, token_ids: Sequence[int]) -> str:
    """The same for whoever pins these tokens under this salt, of which the tenant is a part."""
    salt = cache_salt.encode()
    digest = hashlib.sha256(len(salt).to_bytes(4, "little") + salt)
    ids = array("I", token_ids)
    digest.update(ids.tobytes())
    return f"pin_{digest.hexdigest()[:32]}"


def check_cache(mode: str, ttl: float | None) -> None:
    """Raises InvalidRequest unless these go together in a request."""
    if mode not in ("auto", "pin"):
        raise InvalidRequest(f'cache is "auto" or "pin", not {mode!r:.80}', param="cache")
    if ttl is None:
        return
    if mode != "pin":
        raise InvalidRequest('cache_ttl is how long a pin lasts; it goes with cache="pin" alone', param="cache_ttl")
    if not MIN_CACHE_TTL <= ttl <= MAX_CACHE_TTL:
        raise InvalidRequest(
            f"cache_ttl is {MIN_CACHE_TTL:g} to {MAX_CACHE_TTL:,.0f} seconds (30 days), not {ttl:,.15g}",
            param="cache_ttl",
        )
