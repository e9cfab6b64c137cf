"""Frames out of a stream of bytes: four little-endian bytes of length each, then the body."""

from __future__ import annotations

import struct

from .frames import MAX_FRAME_BYTES

_LENGTH = struct.Struct("<I")


class FrameBuffer:
    """Takes bytes as they arrive, and gives bodies of whole frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data

    def next(self) -> bytes | None:
        """The next body; None until more has arrived. Raises ValueError when a frame is too long."""
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        if length > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
        end = _LENGTH.size + length
        if len(self._data) < end:
            return None
        body = bytes(self._data[_LENGTH.size : end])
        del self._data[:end]
        return body
