"""Pins over the socket: an engine without jobs works on them, by itself and when it is told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fake_model import answer
from millrace_worker.engine import pins
from millrace_worker.engine.__main__ import serve
from millrace_worker.engine.link import FrontLink
from millrace_worker.frames import AddSequence, SequenceParams, StepOutput, ToEngine, pack, unpack_from_engine
from pin_parts import PinLoop, pinned

SYSTEM, LARGE = list(range(18)), list(range(100, 259))


class Front:
    def __init__(self, link: FrontLink) -> None:
        self._link = link
        self.tokens: list[int] = []

    def tell(self, **what: Any) -> None:
        self._link.send(pack(ToEngine(**what)))

    def hear(self, until: Callable[[StepOutput], object]) -> StepOutput:
        """The first output of which this is so."""
        while True:
            body = self._link.receive_body()
            assert body is not None
            output = unpack_from_engine(body)
            assert isinstance(output, StepOutput)
            self.tokens += [token for _, tokens in output.tokens for token in tokens]
            if until(output):
                return output


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    monkeypatch.setattr(pins, "_PAUSE", 0.2)
    monkeypatch.setattr(pins, "_REPORT_SECONDS", 0.05)
    loop = PinLoop(40)
    loop.pins._clock = time.monotonic
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=serve, args=(loop, FrontLink(theirs)))
        thread.start()
        link = FrontLink(ours)
        ours.settimeout(20)  # a link makes its socket wait for ever
        front = Front(link)
        yield front
        front.tell(shutdown=True)
        thread.join(20)
        assert not thread.is_alive()


def test_pins_alone_are_work(front: Front) -> None:
    front.tell(pin=[pinned("a", SYSTEM), pinned("b", [1])])
    output = front.hear(lambda output: output.pins and output.pins[0].tier == "gpu")
    assert [(state.pin_id, state.problem) for state in output.pins or ()] == [("a", ""), ("b", "too_short")]
    assert (output.started, output.finished, output.tokens) == ([], [], [])
    front.tell(unpin=["a"])
    output = front.hear(lambda output: output.pins is not None)
    assert [state.pin_id for state in output.pins or ()] == ["b"]


def test_a_pin_that_gave_way_comes_back_and_hits_are_told_while_nobody_says_a_word(front: Front) -> None:
    front.tell(pin=[pinned("a", SYSTEM)])
    front.hear(lambda output: output.pins and output.pins[0].tier == "gpu")
    front.tell(add=[AddSequence(1, LARGE, [], SequenceParams(max_tokens=1))])
    front.hear(lambda output: output.pins and output.pins[0].problem == "gave_way")
    front.hear(lambda output: output.pins and (output.pins[0].tier, output.pins[0].problem) == ("gpu", ""))
    front.tell(add=[AddSequence(2, [*SYSTEM, 7], [], SequenceParams(max_tokens=1))])
    front.hear(lambda output: output.pins and output.pins[0].hits == 1)
    assert front.tokens == [*answer(LARGE, 1), *answer([*SYSTEM, 7], 1)]
