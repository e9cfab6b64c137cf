"""The edge to Redis: bounded retries of our own, the Lua scripts, Redis time, and errors that say what to do."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from millrace_schemas import QueueUnavailable

from .command_batch import CommandBatcher
from .wire import Command, Wire

#: Oldest server whose commands suffice.
MIN_VERSION = (6, 2)
#: Commands of one client under way at once; more wait their turn, without a limit of time.
MAX_CONNECTIONS = 16
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_CLOCK_SYNC = 60.0
#: Seconds of retries until Redis has answered once: a wrong address should be told soon.
_FIRST_CONTACT = 2.0
#: ReadOnlyError: an old master after a failover. The next connection may reach the new one.
TRANSIENT = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError)
_REFUSED = (AuthenticationError, AuthorizationError, NoPermissionError)


class Connection:
    """Short commands with a timeout, which share round trips, and `wire` for whoever waits on one of its own.

    redis-py retries any command ten times unless told otherwise; here every retry is ours, and only idempotent
    commands pass through `call`. The wire protocol is RESP2, whose reply shapes are the same in all redis-py releases.
    """

    def __init__(self, url: str, *, socket_timeout: float = 5.0, retry_for: float = 10.0):
        self.address = _address(url)
        self.retry_for = retry_for
        self._timeout = socket_timeout
        common: dict[str, Any] = {
            "protocol": 2,
            "decode_responses": False,
            "socket_connect_timeout": socket_timeout,
            "health_check_interval": 0,
            "retry": Retry(NoBackoff(), 0),
        }
        if not url.startswith("unix://"):
            # Connections of a Unix socket have no such option.
            common["socket_keepalive"] = True
        try:
            # The timeout is ours (`call`): redis-py's own goes through wait_for, which in Python 3.11 may lose a
            # cancellation, and a caller that was cancelled would go on.
            self.commands: Redis = Redis.from_url(url, socket_timeout=None, **common)
            # Connects to nothing; parameters in the URL are looked at only here.
            self.wire()
        except (ValueError, TypeError, AttributeError) as e:
            why = "" if "@" in url else f" ({e})"  # it may quote the beginning of a password
            raise QueueUnavailable(f"{self.address} is no Redis URL{why}; one looks like redis://host:6379/0") from e
        self._batcher = CommandBatcher(self._send)
        self._wires: list[Wire] = []
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._checking = asyncio.Lock()
        #: Held while the clock is read: callers that come together ask once.
        self._clock = asyncio.Lock()
        self._checked = False
        self._clock_offset = 0.0
        self._clock_read_at = float("-inf")

    async def call(self, do: Callable[[Redis], Awaitable[Any]]) -> Any:
        """`do(redis)`, repeated with back-off for `retry_for` seconds while Redis cannot be reached.

        `do` must be idempotent: a reply may have been lost after the command ran. Its replies are untyped: the types
        of redis-py do not know that nothing is decoded here. Raises QueueUnavailable.
        """
        limit = time.monotonic() + (self.retry_for if self._checked else min(self.retry_for, _FIRST_CONTACT))
        pause = _FIRST_PAUSE
        while True:
            try:
                async with self._slots:
                    async with asyncio.timeout(self._timeout):
                        if not self._checked:
                            await self._check_server()
                        return await do(self.commands)
            except RedisError as e:
                if not self._may_pass(e) or time.monotonic() + pause > limit:
                    raise self.translate(e) from e
                if isinstance(e, ReadOnlyError):
                    await self.commands.connection_pool.disconnect(inuse_connections=False)
            except OSError as e:
                # TimeoutError, too: the command's connection was closed with it.
                if time.monotonic() + pause > limit:
                    raise self.translate(e) from e
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def run(self, *commands: Command, size: int = 0) -> list[Any]:
        """The replies to idempotent `commands` of about `size` bytes, which share round trips with those of others.

        Raises QueueUnavailable.
        """
        replies = await self.try_run(*commands, size=size)
        self._raise_first(replies)
        return replies

    async def try_run(self, *commands: Command, size: int = 0) -> list[Any]:
        """As `run`, with errors that the server answered in the places of their replies."""
        return await self._batcher.run(commands, size)

    async def script(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The reply of scripts/<name>.lua, which must be idempotent."""
        return (await self.script_many(name, [(keys, args)]))[0]

    async def script_many(
        self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]], *, size: int = 0
    ) -> list[Any]:
        """The replies of scripts/<name>.lua to all `calls`, in one round trip."""
        source, digest = load_script(name)
        commands = [("EVALSHA", digest, len(keys), *keys, *args) for keys, args in calls]
        replies = await self._batcher.run(commands, size)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            await self.run(("SCRIPT", "LOAD", source))
            replies = await self._batcher.run(commands, size)
        self._raise_first(replies)
        return replies

    async def now(self) -> float:
        """Redis time, Unix seconds; asked once a minute and carried on by the monotonic clock."""
        if self._clock_is_old():
            async with self._clock:
                if self._clock_is_old():
                    await self.call(self._read_clock)
        return time.monotonic() + self._clock_offset

    async def close(self) -> None:
        await self._batcher.close()
        await self._close_wires()
        await self.commands.aclose()

    def translate(self, error: Exception) -> QueueUnavailable:
        """`error` of redis-py as one line for a human."""
        text = str(error).strip() or type(error).__name__
        if type(error) is TimeoutError:
            text = f"no answer within {self._timeout:g} s"
        if isinstance(error, AuthenticationError):
            return QueueUnavailable(f"Redis at {self.address} refuses the user name or password: {text}")
        if isinstance(error, _REFUSED):
            return QueueUnavailable(f"Redis at {self.address} does not permit this user what Millrace needs: {text}")
        if isinstance(error, OutOfMemoryError):
            return QueueUnavailable(f"Redis at {self.address} is out of memory (maxmemory): {text}")
        if isinstance(error, TRANSIENT):
            return QueueUnavailable(f"no Redis at {self.address}: {text}")
        return QueueUnavailable(f"Redis at {self.address} answered with an error: {text}")

    @staticmethod
    def _may_pass(error: RedisError) -> bool:
        return isinstance(error, TRANSIENT) and not isinstance(error, _REFUSED)

    async def _check_server(self) -> None:
        async with self._checking:
            if self._checked:
                return
            await self._read_clock(self.commands)
            try:
                info = await self.commands.info("server")
            except NoPermissionError:
                # INFO may be denied by an ACL; then a missing command will speak for itself.
                info = {}
            if "redis_version" in info:
                check_version(str(info["redis_version"]), self.address)
            self._checked = True

    def _clock_is_old(self) -> bool:
        return time.monotonic() - self._clock_read_at > _CLOCK_SYNC

    async def _read_clock(self, redis: Redis) -> None:
        before = time.monotonic()
        seconds, microseconds = await redis.time()
        after = time.monotonic()
        self._clock_offset = seconds + microseconds / 1e6 - (before + after) / 2
        self._clock_read_at = after

    def wire(self) -> Wire:
        """A connection of its own for whoever waits on it. Close it."""
        return Wire(self.commands)

    async def _send(self, commands: list[Command]) -> list[Any]:
        """The replies, errors in the places of those that no repeat would change."""

        async def do(redis: Redis) -> list[Any]:
            wire = self._wires.pop() if self._wires else Wire(redis)
            replies = await wire.run(commands)
            if any(isinstance(reply, Exception) for reply in replies):
                replies = [_unwrap(reply) if isinstance(reply, Exception) else reply for reply in replies]
                passing = next((r for r in replies if isinstance(r, RedisError) and self._may_pass(r)), None)
                if passing is not None:
                    await wire.close()
                    await self._close_wires()
                    raise passing
            self._wires.append(wire)
            return replies

        replies: list[Any] = await self.call(do)
        return replies

    async def _close_wires(self) -> None:
        wires, self._wires = self._wires, []
        for wire in wires:
            await wire.close()

    def _raise_first(self, replies: list[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Exception):
                raise self.translate(reply) from reply


_scripts: dict[str, tuple[str, str]] = {}


def load_script(name: str) -> tuple[str, str]:
    """Source and SHA-1 of scripts/<name>.lua in this package."""
    if name not in _scripts:
        source = (resources.files("millrace") / "scripts" / f"{name}.lua").read_text(encoding="utf-8")
        _scripts[name] = source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return _scripts[name]


def _unwrap(error: Exception) -> Exception:
    """What stopped a script: old servers wrap the error of the command in one of their own."""
    for mark, kind in (("-READONLY", ReadOnlyError), ("-OOM", OutOfMemoryError)):
        _, found, text = str(error).partition(mark)
        if found:
            return kind(text.strip())
    return error


def check_version(version: str, address: str) -> None:
    """Raises QueueUnavailable when a server of this version is too old."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < MIN_VERSION:
        least = ".".join(map(str, MIN_VERSION))
        raise QueueUnavailable(f"Redis at {address} is version {version}; Millrace needs {least} or newer, or Valkey")


def _address(url: str) -> str:
    """`url` for messages: without user name and password."""
    if "://" not in url:  # what urlsplit takes for the scheme of localhost:6379 is the host, or a user
        return url if url and "@" not in url else "the given address"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        place = f"{host}:{parts.port}" if parts.port else host
    except ValueError:
        return "the given address"
    return f"{parts.scheme}://{place}{parts.path}" if parts.scheme else "the given address"
