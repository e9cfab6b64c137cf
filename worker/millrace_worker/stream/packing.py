"""Commands into the bytes of Redis' protocol by hiredis, where it is installed.

redis-py's asyncio connections do it in Python, which costs a worker more than all else about a job's end. What hiredis
does not know is left to redis-py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis.asyncio.connection import ConnectionPool

try:
    import hiredis
except ImportError:
    _pack: Any = None
else:
    _pack = hiredis.pack_command


def pack_by_hiredis(pool: ConnectionPool) -> None:
    """Connections that `pool` makes from now on do so."""
    if _pack is not None:
        kind = pool.connection_class
        pool.connection_class = type(kind.__name__, (_Packing, kind), {})


class _Packing:
    """Over a class of redis.asyncio's connections, whichever transport it is for."""

    def pack_command(self, *args: Any) -> list[bytes]:
        name = args[0]
        # "CONFIG GET" is one argument for redis-py, and two for the server.
        words = tuple(name.split()) if isinstance(name, str) else (name,)
        try:
            return [_pack((*words, *args[1:]))]
        except TypeError:
            packed: list[bytes] = super().pack_command(*args)  # type: ignore[misc]
            return packed

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        return [b"".join(part for command in commands for part in self.pack_command(*command))]
