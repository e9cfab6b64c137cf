"""The least HTTP/1.1 client that a load generator needs: on two cores, a comfortable one would be most of the load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self
from urllib.parse import urlsplit


class HttpError(Exception):
    """An answer with another status than wanted, or none."""


class HttpConnection:
    """One keep-alive connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str):
        self._reader = reader
        self._writer = writer
        self._host = host

    @classmethod
    async def open(cls, url: str) -> Self:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        return cls(reader, writer, f"{parts.hostname}:{parts.port}")

    def packed(self, method: str, path: str, body: Any = None) -> bytes:
        """A request's bytes, to be sent any number of times."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\n"
        if body is not None:
            head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
        return head.encode() + b"\r\n" + data

    async def send(self, packed: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._writer.write(packed)
        head = await self._head()
        length = _header(head, b"content-length")
        if length is None:
            return _status(head), b"".join([chunk async for chunk in self._chunks()])
        return _status(head), await self._reader.readexactly(int(length))

    async def ask(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        """The JSON of an answer. Raises HttpError."""
        found, data = await self.send(self.packed(method, path, body))
        if found != status:
            raise HttpError(f"{method} {path}: {found} {data[:300]!r}")
        return json.loads(data)

    async def events(self, method: str, path: str, body: Any = None) -> AsyncIterator[bytes]:
        """The events of a stream, as their bytes. Raises HttpError."""
        self._writer.write(self.packed(method, path, body))
        head = await self._head()
        if _status(head) != 200:
            raise HttpError(f"{method} {path}: {head[:300]!r}")
        rest = b""
        async for chunk in self._chunks():
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                if not event.startswith(b":"):
                    yield event

    async def close(self) -> None:
        self._writer.transport.abort()

    async def _head(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError) as e:
            raise HttpError("the gateway closed the connection") from e

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)


def _status(head: bytes) -> int:
    return int(head[9:12])


def _header(head: bytes, name: bytes) -> bytes | None:
    start = head.lower().find(b"\r\n" + name + b":")
    return None if start < 0 else head[start + len(name) + 3 : head.index(b"\r\n", start + 2)].strip()
