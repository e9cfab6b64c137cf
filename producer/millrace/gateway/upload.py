"""Reading multipart/form-data piece by piece: the file goes to disk, the few fields stay in memory."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from .errors import ApiError, invalid

#: Fields beside the file, and bytes of one.
_MOST_FIELDS, _LONGEST_FIELD = 16, 1000
_BLOCK = 4 * 1024 * 1024
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class Upload:
    """`file` is at its start; close it."""

    filename: str
    file: IO[bytes]
    size: int
    fields: dict[str, str] = field(default_factory=dict)

    def blocks(self) -> Iterator[bytes]:
        while block := self.file.read(_BLOCK):
            yield block


async def read_upload(request: Request, max_bytes: int, timeout: float) -> Upload:
    """The one part `file` and the fields. Raises ApiError: 415, 413 above `max_bytes`, 408, 400, 507 without room."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise ApiError(415, "send multipart/form-data with a part named file", code="unsupported_media_type")
    form = _Form(options[b"boundary"], max_bytes)
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():
                await asyncio.to_thread(form.feed, chunk) if len(chunk) > 65536 else form.feed(chunk)
        return form.finish()
    except BaseException as e:
        form.close()
        if isinstance(e, MultipartParseError):
            raise invalid(f"the body is not multipart/form-data: {e}") from None
        if isinstance(e, TimeoutError):
            raise ApiError(
                408, f"the file did not arrive within {timeout:g} s", code="request_timeout",
                headers={"connection": "close"},
            ) from None  # fmt: skip
        if isinstance(e, ClientDisconnect):
            raise ApiError(499, "the client left while it sent its request", code="client_closed_request") from None
        if isinstance(e, OSError) and e.errno in _NO_ROOM:
            raise ApiError(
                507, f"the gateway has no room for the file in {tempfile.gettempdir()}, where its TMPDIR says",
                code="insufficient_storage", headers={"connection": "close", "x-should-retry": "false"},
            ) from None  # fmt: skip
        raise


class _Form:
    def __init__(self, boundary: bytes, max_bytes: int):
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)
        self._max = max_bytes
        # Unnamed, so that nothing is left of it whatever happens.
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._filename: str | None = None
        self._size = 0
        self._fields: dict[str, str] = {}
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._part = ""
        self._held = bytearray()

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def finish(self) -> Upload:
        self._parser.finalize()
        if self._filename is None:
            raise invalid("there is no part named file with a file name", param="file")
        self._file.seek(0)
        return Upload(self._filename, self._file, self._size, self._fields)

    def close(self) -> None:
        self._file.close()

    def _begin(self) -> None:
        self._headers, self._name, self._value, self._part = {}, b"", b"", ""
        self._held.clear()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._part = options.get(b"name", b"").decode(errors="replace")
        if self._part == "file":
            if self._filename is not None:
                raise invalid("there are several parts named file", param="file")
            self._filename = options.get(b"filename", b"file").decode(errors="replace")[:255]
        elif not self._part or self._part in self._fields or len(self._fields) == _MOST_FIELDS:
            raise invalid("every part must have a name of its own", param=self._part[:80] or None)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part != "file":
            self._held += data[start:end]
            if len(self._held) > _LONGEST_FIELD:
                raise invalid(f"{self._part[:80]} is too long", param=self._part[:80])
            return
        self._size += end - start
        if self._size > self._max:
            raise ApiError(
                413, f"the file is longer than {self._max:,} bytes", code="request_too_large",
                headers={"connection": "close"},
            )  # fmt: skip
        self._file.write(data[start:end])

    def _end(self) -> None:
        if self._part != "file":
            self._fields[self._part] = self._held.decode(errors="replace")
