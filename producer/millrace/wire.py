"""One connection to Redis under a client of redis-py: many commands a write, their replies in order.

redis-py's own pipelines do the same through more layers than most commands take in the server. Login, TLS, the parser
and the names of errors are redis-py's here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

try:
    import hiredis
except ImportError:  # it comes with the extras of those who send much
    _pack: Any = None
else:
    _pack = hiredis.pack_command

#: A command's name and arguments; one name of two words is two of them.
Command = tuple[str | bytes | int | float, ...]


def pack(argument: str | bytes) -> bytes:
    """One argument of a command in the bytes of the protocol, for those that are sent again and again."""
    data = argument if isinstance(argument, bytes) else argument.encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


class Wire:
    """Opens itself when it is used, and closes itself whenever a use of it does not come to its end."""

    def __init__(self, redis: Redis):
        pool: Any = redis.connection_pool
        self._connection = pool.make_connection()
        #: CLIENT ID of this connection, once asked for.
        self.id: int | None = None

    @property
    def is_open(self) -> bool:
        return bool(self._connection.is_connected)

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The replies; an error that the server answered with stands in its place.

        Raises redis.ConnectionError, OSError.
        """
        await self.send(commands)
        return [await self.read() for _ in commands]

    async def run_packed(self, packed: bytes) -> Any:
        """The reply to one command in the bytes of the protocol."""
        await self.send_packed([packed])
        return await self.read()

    async def send(self, commands: Sequence[Command]) -> None:
        if _pack is None:
            packed: Sequence[bytes] = self._connection.pack_commands(commands)
        else:
            packed = [b"".join(map(_pack, commands))]
        await self.send_packed(packed)

    async def send_packed(self, packed: Sequence[bytes]) -> None:
        try:
            if not self.is_open:
                self.id = None
                await self._connection.connect()
            await self._connection.send_packed_command(packed, check_health=False)
        except BaseException:
            await self.close()
            raise

    async def read(self) -> Any:
        """The next reply or message, however long it takes; a ResponseError is returned."""
        try:
            return await self._connection.read_response()
        except ResponseError as e:
            return e
        except BaseException:
            await self.close()
            raise

    async def own_id(self) -> int:
        """CLIENT ID, by which other connections can end a blocking command of this one. Raises ResponseError."""
        if self.id is None or not self.is_open:
            (reply,) = await self.run([("CLIENT", "ID")])
            if isinstance(reply, Exception):
                raise reply
            self.id = int(reply)
        return self.id

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)
