"""Frames between front and engine: length first, then msgpack, any number of them over one socket."""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgspec
import pytest

from millrace_worker import frames
from millrace_worker.frames import (
    AddSequence,
    Load,
    Ready,
    Refusal,
    SequenceParams,
    Started,
    StartFailed,
    StepOutput,
    ToEngine,
)

PARAMS = SequenceParams(
    max_tokens=64,
    min_tokens=1,
    temperature=0.5,
    top_k=40,
    top_p=0.9,
    min_p=0.1,
    seed=2**63 - 1,
    stop_token_ids=(2, 3),
)

TO_ENGINE = [
    ToEngine(),
    ToEngine(shutdown=True),
    ToEngine(
        add=[AddSequence(1, [5, 6], [7], PARAMS, priority=-1), AddSequence(2, [5], [], SequenceParams(1))],
        abort=[3, 2**40],
    ),
]

FROM_ENGINE = [
    Ready("cpu", 2048, 16, 16, 512, 300),
    StartFailed("no config.json in /models/x"),
    StepOutput(step=0),
    StepOutput(
        step=7,
        tokens=[(1, [9, 10]), (2, [0])],
        finished=[(2, "stop")],
        refused=[Refusal(4, "kv_capacity_exceeded", "needs 9 blocks of 8")],
        started=[Started(1, 32, {"gpu": 16, "cpu": 16})],
        load=Load(1, 0, 3, 8, 80, 71, 2),
    ),
]


def body_of(frame: bytes) -> bytes:
    (length,) = struct.unpack("<I", frame[:4])
    assert length == len(frame) - 4
    return frame[4:]


@pytest.mark.parametrize("frame", TO_ENGINE, ids=range(len(TO_ENGINE)))
def test_a_frame_to_the_engine_survives(frame: ToEngine) -> None:
    assert frames.unpack_to_engine(body_of(frames.pack(frame))) == frame


@pytest.mark.parametrize("frame", FROM_ENGINE, ids=range(len(FROM_ENGINE)))
def test_a_frame_from_the_engine_survives_as_its_own_type(frame: Any) -> None:
    found = frames.unpack_from_engine(body_of(frames.pack(frame)))
    assert type(found) is type(frame)
    assert found == frame


@pytest.mark.parametrize("frame", FROM_ENGINE, ids=range(len(FROM_ENGINE)))
def test_a_frame_in_the_wrong_direction_is_refused(frame: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        frames.unpack_to_engine(body_of(frames.pack(frame)))


def test_a_damaged_frame_is_refused() -> None:
    body = body_of(frames.pack(FROM_ENGINE[-1]))
    for length in range(len(body)):
        with pytest.raises(msgspec.DecodeError):
            frames.unpack_from_engine(body[:length])
    with pytest.raises(msgspec.DecodeError):
        frames.unpack_from_engine(body + b"\x00")


def test_frames_follow_each_other_over_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"".join(frames.pack(frame) for frame in TO_ENGINE))
        ours.shutdown(socket.SHUT_WR)
        with theirs.makefile("rb") as stream:
            found = []
            while head := stream.read(4):
                found.append(frames.unpack_to_engine(stream.read(int.from_bytes(head, "little"))))
    assert found == TO_ENGINE
