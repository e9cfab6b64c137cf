"""The queue's Lua scripts, called by hash, loaded when the server does not know them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import redis
import redis.asyncio


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    source: str
    sha: str


def _read(name: str) -> Script:
    source = files(__package__).joinpath("scripts", f"{name}.lua").read_text()
    return Script(name, source, hashlib.sha1(source.encode()).hexdigest())


BEAT = _read("beat")
CHECKPOINT = _read("checkpoint")
CLAIM = _read("claim")
FINISH = _read("finish")
LEASE = _read("lease")
LEAVE = _read("leave")
PIN_NOTE = _read("pin_note")
PIN_PUT = _read("pin_put")
PIN_READ = _read("pin_read")
PIN_REFRESH = _read("pin_refresh")
PROMOTE = _read("promote")
REQUEUE = _read("requeue")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a script."""

    script: Script
    keys: Sequence[str]
    args: Sequence[str | bytes | int | float]

    def command(self, by: str, what: str) -> tuple[Any, ...]:
        return (by, what, len(self.keys), *self.keys, *self.args)


async def run(client: redis.asyncio.Redis, call: Call) -> Any:
    try:
        return await client.execute_command(*call.command("EVALSHA", call.script.sha))
    except redis.exceptions.NoScriptError:
        return await client.execute_command(*call.command("EVAL", call.script.source))


def run_sync(client: redis.Redis, call: Call) -> Any:
    try:
        return client.execute_command(*call.command("EVALSHA", call.script.sha))
    except redis.exceptions.NoScriptError:
        return client.execute_command(*call.command("EVAL", call.script.source))


async def run_many(client: redis.asyncio.Redis, calls: Sequence[Call]) -> list[Any]:
    """The replies of `calls` in order, sent in one round trip; a refused call's reply is its exception.

    Raises what redis raises when the connection is lost: any of the calls may then have been done.
    """
    replies = await _pipeline(client, [c.command("EVALSHA", c.script.sha) for c in calls])
    missing = [i for i, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)]
    if missing:
        again = await _pipeline(client, [calls[i].command("EVAL", calls[i].script.source) for i in missing])
        for i, reply in zip(missing, again, strict=True):
            replies[i] = reply
    return replies


async def _pipeline(client: redis.asyncio.Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))
