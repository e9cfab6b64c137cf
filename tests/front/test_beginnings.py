from __future__ import annotations

import random

from millrace_worker.front.beginnings import Beginnings


def test_what_a_prompt_has_in_common_with_the_latest_of_its_beginning() -> None:
    draw, beginnings = random.Random(3), Beginnings()
    system = [draw.randrange(1000) for _ in range(700)]
    assert beginnings.shared("", system) == 0
    for length in (256, 257, 400, 699, 700):
        beginnings.shared("", system)
        assert beginnings.shared("", [*system[:length], -1, -2]) == length
    assert beginnings.shared("", system) == 700
    assert beginnings.shared("", [*system[:255], -1, *system]) == 0
    assert beginnings.shared("another", system) == 0
    assert beginnings.shared("", system[:255]) == 0


def test_beginnings_that_did_not_come_lately_are_forgotten() -> None:
    beginnings = Beginnings()
    for first in range(65):
        assert beginnings.shared("", [first] * 300) == 0
    assert beginnings.shared("", [1] * 300) == 300
    assert beginnings.shared("", [0] * 300) == 0
