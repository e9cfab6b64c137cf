"""Redis clients for a queue, and the one place where redis-py's exceptions become ours.

redis-py 8 gives every command ten silent retries and a socket timeout of five seconds; older releases give none. Both
are set here: no hidden retries (our scripts may be repeated, and the callers decide when), and blocking reads on a
connection of their own whose timeout is longer than their block.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from millrace_schemas import QueueUnavailable
from millrace_worker.errors import ConfigError

from .packing import pack_by_hiredis

OLDEST_REDIS = (6, 2)

_SOCKET_TIMEOUT = 5.0
#: A blocking read returns this long before its socket would time out.
_MARGIN = 5.0

#: What can be cured by waiting: the server is away, still loading, or failing over.
TRANSIENT = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ReadOnlyError, OSError)

#: It is out of memory for now, or its cluster is not whole: redis-py takes the code of these out of their words.
_PASSING_KINDS = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
_PASSING = ("LOADING ", "OOM command", "READONLY ", "MASTERDOWN ", "CLUSTERDOWN ", "TRYAGAIN ", "MISCONF ")


def connect(url: str) -> redis.asyncio.Redis:
    """A client for short commands in the event loop."""
    return _made_async(url, _SOCKET_TIMEOUT)


def connect_blocking(url: str, block: float) -> redis.asyncio.Redis:
    """A client whose reads may block for `block` seconds."""
    return _made_async(url, block + _MARGIN)


def connect_sync(url: str) -> redis.Redis:
    """A client for a thread."""
    return _made(redis.Redis, url, retry=Retry(NoBackoff(), 0), **_options(url, _SOCKET_TIMEOUT))


def _made_async(url: str, timeout: float) -> redis.asyncio.Redis:
    options = _options(url, timeout)
    client: redis.asyncio.Redis = _made(redis.asyncio.Redis, url, retry=AsyncRetry(NoBackoff(), 0), **options)
    pack_by_hiredis(client.connection_pool)
    return client


def _made(kind: Any, url: str, **options: Any) -> Any:
    """Raises ConfigError on a URL that redis-py does not take, without its own words: they may quote a password."""
    try:
        client = kind.from_url(url, **options)
        # Connects to nothing; parameters in the URL are looked at only here.
        client.connection_pool.make_connection()
    except (ValueError, TypeError, AttributeError) as e:
        raise ConfigError(
            "redis_url must be redis://[user:password@]host:port/database, rediss://... or "
            "unix:///path/of/the.socket?db=0, with special characters of the password percent-encoded and no parameter "
            "that redis-py does not know"
        ) from e
    return client


def _options(url: str, timeout: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": _SOCKET_TIMEOUT,
        "decode_responses": False,
        # Replies have one shape in every release of redis-py only in RESP2.
        "protocol": 2,
    }
    # Connections of a Unix socket have no such option.
    return options if _is_socket(url) else {**options, "socket_keepalive": True}


def _is_socket(url: str) -> bool:
    return url.startswith("unix://")


async def check_server(client: redis.asyncio.Redis, url: str) -> float:
    """The server's uptime in seconds.

    Raises QueueUnavailable when it cannot be reached, refuses us or is older than Redis 6.2.
    """
    try:
        info = await client.info("server")
    except (redis.RedisError, OSError) as e:
        raise unavailable(e, url) from e
    version = str(info.get("redis_version", "0"))
    if _numbers(version) < OLDEST_REDIS:
        raise QueueUnavailable(f"Redis at {place(url)} is version {version}; Millrace needs 6.2 or newer (or Valkey)")
    return float(info.get("uptime_in_seconds", 0))


def unavailable(error: Exception, url: str) -> QueueUnavailable:
    """One line about why `url` cannot be used and what to do; no password in it."""
    words = str(error)
    if isinstance(error, redis.AuthenticationError) or words.startswith(("NOAUTH", "WRONGPASS")):
        return Refused(f"Redis at {place(url)} refuses the user or password: {words}; check redis_url")
    if isinstance(error, redis.exceptions.NoPermissionError):
        return Refused(f"Redis at {place(url)} lets this user do too little: {words}")
    if isinstance(error, TRANSIENT):
        return QueueUnavailable(f"cannot reach Redis at {place(url)}: {words or type(error).__name__}")
    return QueueUnavailable(f"Redis at {place(url)} answers with an error: {words}")


class Refused(QueueUnavailable):
    """Waiting will not help: a wrong password or missing permission."""


def place(url: str) -> str:
    """Host, port and database of `url`, or the path of its socket; without its credentials."""
    parts = urlsplit(url)
    if _is_socket(url):
        return parts.path
    return f"{parts.hostname or parts.path or 'localhost'}:{parts.port or 6379}{parts.path if parts.hostname else ''}"


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later without anybody's help."""
    if isinstance(error, redis.AuthenticationError):
        return False
    # Redis 6.2 wraps what a script met into words of its own, so the code may stand anywhere.
    return isinstance(error, (*TRANSIENT, *_PASSING_KINDS)) or any(code in str(error) for code in _PASSING)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


class Backoff:
    """Growing, jittered pauses between tries: `first` seconds, doubled up to `most`, back to `first` by `reset`."""

    def __init__(self, first: float = 0.05, most: float = 5.0):
        self._first, self._most = first, most
        self._next = first

    def reset(self) -> None:
        self._next = self._first

    def next(self) -> float:
        """Seconds to wait now."""
        pause, self._next = self._next, min(self._most, self._next * 2)
        return pause * random.uniform(0.5, 1.0)

    async def sleep(self) -> None:
        await asyncio.sleep(self.next())
