"""API keys: who may use a gateway, as which tenant, and how much.

A key is `mk_<id>_<secret>`. Redis holds the SHA-256 of the secret and never the secret: 256 random bits cannot be found
by trying, so a slow hash, which is for passwords that people choose, would protect nothing and cost every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time

import msgspec

from millrace_schemas import DecodeError, InvalidRequest, MillraceError, decode, encode
from millrace_schemas.job import check_tenant
from millrace_schemas.keys import API_KEYS

from .connection import Connection

MAX_NAME = 100
#: Largest limit that is one.
MAX_LIMIT = 10**12
_DAY = 86_400
_ID_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
_KEY = re.compile(r"mk_([0-9a-z]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
_ID = re.compile(r"[0-9a-z]{12}", re.ASCII)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a key; times are Unix seconds, limits of 0 mean none."""

    id: str
    #: SHA-256 of the secret.
    digest: bytes
    name: str
    #: "": the queue's own producers.
    tenant: str = ""
    #: Sees the jobs of all tenants, the status page and the metrics.
    operator: bool = False
    created_at: float
    expires_at: float | None = None
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    #: Unfinished jobs of the tenant in a queue at which this key may submit no more.
    max_jobs: int = 0
    #: "s3://bucket/prefix" under which its jobs' results may go; "": they stay in Redis.
    results_to: str = ""

    def opened_by(self, secret: str) -> bool:
        """Whether `secret` is the key's, in a time that does not depend on how much of it is right."""
        return hmac.compare_digest(self.digest, _digest(secret))

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class KeyNotFound(MillraceError, LookupError):
    """There is no key with this id, or it was revoked."""


def split_key(text: str) -> tuple[str, str] | None:
    """The id and the secret of a key; None when the text has not its form."""
    match = _KEY.fullmatch(text)
    return None if match is None else (match[1], match[2])


class KeyStore:
    """The keys in one Redis. Everything may raise QueueUnavailable."""

    def __init__(self, connection: Connection):
        self._connection = connection

    async def create(
        self,
        name: str,
        *,
        tenant: str = "",
        operator: bool = False,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        max_jobs: int = 0,
        results_to: str = "",
        expires_in: float | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key, and its text `mk_...`, which nobody can ask for again. `expires_in` is in days.

        Raises InvalidRequest naming the argument.
        """
        _check_name(name)
        check_tenant(tenant)
        limits = {
            "requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute, "max_jobs": max_jobs,
        }  # fmt: skip
        for limit, value in limits.items():
            if not 0 <= value <= MAX_LIMIT:
                raise InvalidRequest(f"{limit} must lie in 0 (no limit) to {MAX_LIMIT:,}, not {value}", param=limit)
        if max_jobs and not tenant:
            raise InvalidRequest("max_jobs counts a tenant's jobs; give the key a tenant", param="max_jobs")
        _check_results_to(results_to)
        if expires_in is not None and not 0 < expires_in < 36_500:
            raise InvalidRequest(f"expires_in is a positive number of days, not {expires_in:g}", param="expires_in")
        now = await self._connection.now()
        secret = secrets.token_urlsafe(32)
        key = ApiKey(
            id="".join(secrets.choice(_ID_CHARACTERS) for _ in range(12)),
            digest=_digest(secret),
            name=name,
            tenant=tenant,
            operator=operator,
            created_at=now,
            expires_at=None if expires_in is None else now + expires_in * _DAY,
            results_to=results_to,
            **limits,
        )
        data = encode(key)
        # A repeat after a lost reply writes the same again; no other key has this id.
        await self._connection.call(lambda redis: redis.hset(API_KEYS, key.id, data))
        return key, f"mk_{key.id}_{secret}"

    async def find(self, key_id: str) -> ApiKey | None:
        """None when there is no such key; it may have expired. Raises DecodeError."""
        data = await self._connection.call(lambda redis: redis.hget(API_KEYS, key_id))
        return None if data is None else decode(data, ApiKey)

    async def all(self) -> list[ApiKey]:
        """All that were not revoked, oldest first; expired ones, too. Those of another release are left out."""
        found = await self._connection.call(lambda redis: redis.hvals(API_KEYS))
        keys = [key for data in found if (key := _readable(data)) is not None]
        return sorted(keys, key=lambda key: (key.created_at, key.id))

    async def any_live(self) -> bool:
        """Whether there is a key that has not expired."""
        return any(not key.expired(time.time()) for key in await self.all())

    async def revoke(self, key_id: str) -> None:
        """Gateways that have seen the key take it for a few seconds more. Raises KeyNotFound."""
        # Not by the count of HDEL: its repeat after a lost reply finds nothing.
        if not _ID.fullmatch(key_id) or not await self._connection.call(lambda redis: redis.hexists(API_KEYS, key_id)):
            raise KeyNotFound(f"there is no key {key_id[:80]!r}; `millrace keys list` shows the ids")
        await self._connection.call(lambda redis: redis.hdel(API_KEYS, key_id))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise InvalidRequest(f"name has 1 to {MAX_NAME} printable characters, not {name[:120]!r}", param="name")


def _check_results_to(prefix: str) -> None:
    scheme, _, rest = prefix.partition("://")
    if prefix and (scheme != "s3" or not rest.split("/", 1)[0]):
        raise InvalidRequest(
            f"results_to is s3://bucket or s3://bucket/prefix, not {prefix[:200]!r}", param="results_to"
        )


def _readable(data: bytes) -> ApiKey | None:
    try:
        return decode(data, ApiKey)
    except DecodeError:
        return None
