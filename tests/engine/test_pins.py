"""Pins in the engine's loop, over a fake model that checks every KV slot it reads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from fake_model import answer
from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.lower_tier import NoLowerTier
from millrace_worker.engine.pins import _PAUSE
from millrace_worker.engine.sequence import Sequence
from millrace_worker.frames import PinState, Started
from pin_parts import BLOCK, BLOCK_BYTES, PinLoop, pinned


def ids(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1000) for _ in range(length)]


SYSTEM = ids(18, 1)
#: Of SYSTEM.
FULL = 4


@pytest.fixture(params=[False, True], ids=["one", "two-in-flight"])
def loop(request: pytest.FixtureRequest) -> PinLoop:
    return PinLoop(40, overlap=request.param)


def warm(loop: PinLoop, *, pin_id: str = "a", tokens: list[int] = SYSTEM) -> None:
    loop.pin(pinned(pin_id, tokens))
    loop.settle()
    assert loop.states[pin_id].tier == "gpu"


def test_an_idle_engine_brings_a_pin_into_the_pool_and_says_so(loop: PinLoop) -> None:
    assert loop.rest() is None
    loop.pin(pinned("a", SYSTEM))
    assert loop.rest() == 0.0
    loop.settle()
    state = loop.states["a"]
    assert state == PinState("a", "gpu", FULL, FULL * BLOCK_BYTES, 0)
    assert loop.computed == FULL * BLOCK + 1
    assert loop.pool.num_free == 40 - FULL
    # Told again, it stays as it is.
    loop.pin(pinned("a", SYSTEM))
    assert not loop.has_work


def test_its_blocks_outlast_what_pushes_out_everything_else(loop: PinLoop) -> None:
    warm(loop)
    loop.ask(1, ids(18, 2))
    for number in range(2, 12):
        loop.ask(number, ids(100, number), 3)
        loop.settle()
    loop.ask(20, [*SYSTEM, 1, 2, 3])
    loop.ask(21, [*ids(18, 2), 1, 2, 3])
    loop.settle()
    assert (loop.cached[20], loop.cached[21]) == (FULL * BLOCK, 0)
    assert loop.answers[20] == answer([*SYSTEM, 1, 2, 3], 2)


def test_an_unpinned_prefix_is_evicted_like_others(loop: PinLoop) -> None:
    warm(loop)
    loop.unpin("a")
    loop.unpin("b")
    loop.settle()
    assert loop.states == {}
    assert loop.pool.num_free == 40
    loop.ask(1, ids(158, 2))
    loop.settle()
    loop.ask(2, [*SYSTEM, 1])
    loop.settle()
    assert loop.cached[2] == 0
    assert loop.pins.misses == {}


def test_a_pin_that_is_taken_back_while_it_is_computed_leaves_nothing() -> None:
    loop = PinLoop(40, budget=4)
    loop.pin(pinned("a", SYSTEM))
    loop.step()
    assert loop.has_work
    loop.unpin("a")
    loop.settle()
    assert (loop.states, loop.pool.num_free, loop.pins.num_own) == ({}, 40, 0)


def test_hits_and_misses_are_of_those_that_begin_with_all_of_it(loop: PinLoop) -> None:
    warm(loop)
    warm(loop, pin_id="whole blocks", tokens=SYSTEM[: 3 * BLOCK])
    warm(loop, pin_id="same blocks", tokens=[*SYSTEM, 7][: FULL * BLOCK + 1])
    loop.ask(1, [*SYSTEM, 1])
    loop.ask(2, SYSTEM[: 3 * BLOCK])  # the pin itself, whose last block is computed for its last token
    loop.ask(3, SYSTEM[: 2 * BLOCK + 1])
    loop.ask(4, ids(30, 4))
    loop.settle()
    loop.now += loop.rest() or 0.0
    loop.settle()
    assert {state.pin_id: state.hits for state in loop.states.values()} == {"a": 1, "whole blocks": 2, "same blocks": 1}
    assert loop.pins.misses == {}


def test_of_other_salts_nothing_is_found(loop: PinLoop) -> None:
    loop.pin(pinned("a", SYSTEM, "acme"))
    loop.settle()
    loop.ask(1, [*SYSTEM, 1])
    loop.settle()
    assert (loop.cached[1], loop.states["a"].hits) == (0, 0)


@pytest.mark.parametrize(
    ("tokens", "caching", "problem"),
    [(SYSTEM[:3], True, "too_short"), ([], True, "too_short"), ([*SYSTEM, 1000], True, "bad_tokens"),
     ([-1, *SYSTEM], True, "bad_tokens"), (ids(11 * BLOCK, 1), True, "no_room"), (SYSTEM, False, "off")],
)  # fmt: skip
def test_what_cannot_be_kept_is_said(tokens: list[int], caching: bool, problem: str) -> None:
    loop = PinLoop(40, caching=caching)
    loop.pin(pinned("a", tokens))
    loop.settle()
    assert (loop.states["a"].tier, loop.states["a"].problem) == ("", problem)
    assert loop.computed == 0
    loop.ask(1, [*ids(11 * BLOCK, 1), 1])
    loop.settle()
    assert loop.pins.misses == ({"no_room": 1} if problem == "no_room" else {})
    loop.unpin("a")
    loop.settle()
    assert loop.states == {}


def test_a_prompt_of_the_greatest_length_is_a_pin_of_what_others_can_find() -> None:
    loop = PinLoop(40, budget=200)
    loop.ready = type(loop.ready)("fake", 5 * BLOCK, 4, BLOCK, 40, 1000)
    loop.pin(pinned("a", ids(5 * BLOCK, 3)))
    loop.settle()
    assert (loop.states["a"].tier, loop.states["a"].blocks) == ("gpu", 4)


def test_those_used_last_are_held_and_shared_blocks_count_once(loop: PinLoop) -> None:
    """The pool of 40 blocks has room for 10 of pins."""
    heads = {name: [*SYSTEM[:16], *ids(8, seed)] for seed, name in enumerate("bcd", 5)}
    for name, tokens in heads.items():
        warm(loop, pin_id=name, tokens=tokens)
    assert loop.pool.num_free == 40 - (4 + 3 * 2)
    warm(loop, pin_id="e", tokens=ids(8, 9))
    assert {state.pin_id: state.problem for state in loop.states.values()} == {
        "b": "no_room",
        "c": "",
        "d": "",
        "e": "",
    }
    loop.now += _PAUSE
    loop.ask(1, [*heads["b"], 1])
    loop.settle()
    loop.now += _PAUSE
    loop.settle()
    assert {state.pin_id: state.problem for state in loop.states.values()} == {
        "b": "",
        "c": "no_room",
        "d": "",
        "e": "",
    }
    assert loop.pins.misses == {}  # its blocks were still there
    assert loop.pool.num_free == 30


@pytest.mark.parametrize("priority", [0, 1])
@pytest.mark.parametrize(("length", "most"), [(159, 1), (3, 157), (80, 80)], ids=["prompt", "answer", "both"])
def test_a_job_that_needs_the_whole_pool_gets_it_and_the_pins_come_back(
    loop: PinLoop, priority: int, length: int, most: int
) -> None:
    for number in range(3):
        warm(loop, pin_id=str(number), tokens=ids(13, number))
    loop.ask(1, ids(length, 4), most, priority=priority)
    loop.settle()
    assert loop.answers[1] == answer(ids(length, 4), most)
    assert {state.problem for state in loop.states.values()} == {"gave_way"}
    assert loop.scheduler.num_preemptions == 0
    loop.ask(2, [*ids(13, 1), 1], priority=priority)
    loop.settle()
    assert loop.pins.misses == {"gave_way": 1}
    assert 0 < (loop.rest() or 0) <= _PAUSE
    loop.now += _PAUSE
    loop.settle()
    assert {(state.tier, state.problem) for state in loop.states.values()} == {("gpu", "")}


def test_only_as_many_give_way_as_must_the_least_used_first(loop: PinLoop) -> None:
    for number in range(3):
        warm(loop, pin_id=str(number), tokens=ids(13, number))
    loop.ask(1, [*ids(13, 0), 1])
    loop.settle()
    loop.ask(2, ids(31 * BLOCK, 9), 3)
    loop.settle()
    assert [loop.states[name].problem for name in "012"] == ["", "gave_way", ""]


def test_an_interactive_job_beside_the_batch_lane_takes_what_pins_hold(loop: PinLoop) -> None:
    warm(loop, tokens=ids(40, 1))
    loop.ask(1, ids(20, 2), 60, priority=1)
    for _ in range(5):
        loop.step()
    loop.ask(2, ids(35 * BLOCK, 3), 5)
    while 2 not in loop.answers:
        loop.step()
        assert len(loop.answers.get(1, ())) < 12, "it waits for the batch lane"
    loop.settle()
    assert loop.answers == {1: answer(ids(20, 2), 60), 2: answer(ids(35 * BLOCK, 3), 5)}


def test_pins_stay_while_somebody_runs_whose_end_makes_room(loop: PinLoop) -> None:
    warm(loop, tokens=ids(40, 1))
    for number in range(4):
        loop.ask(number, ids(40, number + 2), 40)
    loop.settle()
    assert loop.states["a"].problem == ""
    assert loop.scheduler.num_preemptions > 0
    assert all(loop.answers[number] == answer(ids(40, number + 2), 40) for number in range(4))


def test_it_is_made_beside_jobs_which_do_not_wait_for_it_and_are_counted_alone() -> None:
    loop = PinLoop(80, seqs=2, budget=6)
    loop.ask(0, ids(4, 1), 60, priority=1)
    loop.step()
    loop.pin(pinned("a", SYSTEM))
    most = 0
    while loop.states.get("a") is None or not loop.states["a"].tier:
        output = loop.step()
        loop.now += 0.5
        assert (output.load.running, output.load.waiting) == (1, 0)
        assert len(output.tokens) == 1
        most = max(most, output.sequences)
    assert most == 2
    assert loop.scheduler.num_preemptions == 0


@pytest.mark.parametrize("others", [0, 5])
def test_where_jobs_leave_no_room_what_they_computed_is_held(others: int) -> None:
    loop = PinLoop(120, seqs=1)
    loop.ask(0, ids(5, 3), 100, priority=1)
    loop.step()
    loop.pin(pinned("a", SYSTEM))
    for number in range(others):
        loop.pin(pinned(str(number), ids(9, number + 20)))
    loop.step()
    loop.ask(1, [*SYSTEM, 7], 100)
    while not list(loop.pins.held):
        loop.now += 0.3
        loop.step()
    assert len(loop.answers[1]) < 20
    assert loop.pool.references(loop.scheduler.running[0].block_table[0]) == 2
    assert loop.pins.num_own == min(others, 4)
    loop.settle()
    loop.now += 1.0
    loop.settle()
    assert loop.answers == {0: answer(ids(5, 3), 100), 1: answer([*SYSTEM, 7], 100)}
    assert {state.tier for state in loop.states.values()} == {"gpu"}


def test_a_job_has_the_row_that_an_own_sequence_holds_at_once() -> None:
    loop = PinLoop(40, seqs=1, budget=4)
    loop.pin(pinned("a", SYSTEM))
    loop.step()
    loop.ask(1, ids(3, 2), 3, priority=1)
    assert loop.step().started == [Started(1, 0)]
    loop.settle()
    assert (loop.states["a"].tier, loop.scheduler.num_preemptions) == ("gpu", 0)
    assert loop.scheduler.load().preemptions == 0


def test_an_own_sequence_that_always_gives_way_is_not_moved_up() -> None:
    loop = PinLoop(80, seqs=1, budget=4)
    loop.pin(pinned("a", ids(70, 1)))
    for number in range(8):
        loop.step()
        loop.ask(number, ids(3, number), 1, priority=1)
        assert loop.step().started == [Started(number, 0)]
    assert not loop.states["a"].tier
    loop.settle()
    assert loop.states["a"].tier == "gpu"


def test_a_reset_forgets_pins_blocks_too_and_they_come_back(loop: PinLoop) -> None:
    warm(loop)
    loop.pins.let_go_all()
    loop.pool.forget_all()
    loop.settle()
    loop.ask(1, [*SYSTEM, 1])
    loop.settle()
    assert loop.cached[1] == 0
    loop.now += _PAUSE
    loop.settle()
    assert loop.states["a"].tier == "gpu"


def test_while_jobs_run_it_reports_about_once_a_second() -> None:
    loop = PinLoop(80)
    warm(loop)
    reports = 0
    for number in range(30):
        loop.ask(number, [*SYSTEM, number], 50)
    while loop.scheduler.has_jobs:
        loop.now += 0.01
        reports += loop.step().pins is not None
    loop.settle()
    assert 1 < reports < 20
    assert 0 < (loop.rest() or 0) <= 1
    loop.now += 1.0
    loop.settle()
    assert loop.states["a"].hits == 30


class Shelf(NoLowerTier):
    """A lower tier that takes one block a time it is asked, and has the names it was given."""

    def __init__(self, pool: BlockPool) -> None:
        self.blocks: list[bytes] = []
        self.protected: set[bytes] = set()
        self.offers = 0

    def computed(self, seq: Sequence, first: int, end: int) -> None:
        if not seq.params.marked:
            return
        self.offers += 1
        self.blocks += [name for name in seq.block_hashes[first:end] if name not in self.blocks][:1]

    def protect(self, chain: list[bytes]) -> None:
        assert self.protected.isdisjoint(chain)
        self.protected.update(chain)

    def unprotect(self, chain: list[bytes]) -> None:
        assert self.protected >= set(chain)
        self.protected.difference_update(chain)

    def keeps(self, chain: list[bytes]) -> bool:
        return set(chain) <= set(self.blocks)

    def tier_of(self, chain: list[bytes]) -> str:
        return "disk" if self.keeps(chain) else ""

    def why_not(self, chain_hash: bytes) -> str:
        return "" if chain_hash in self.blocks else "fingerprint"


def test_a_lower_tier_is_offered_what_it_has_not_until_it_has_all() -> None:
    loop = PinLoop(40, tier=Shelf)
    shelf: Any = loop.scheduler.tier
    warm(loop)
    while loop.rest() is not None:
        loop.now += 0.5
        loop.settle()
        assert loop.now < 60
    assert (len(shelf.blocks), shelf.offers) == (FULL, FULL)
    loop.pins.let_go_all()
    loop.pool.forget_all()
    loop.settle()
    assert (loop.states["a"].tier, loop.states["a"].problem) == ("disk", "gave_way")


def test_one_that_never_takes_it_is_asked_no_more() -> None:
    loop = PinLoop(40, tier=Shelf)
    shelf: Any = loop.scheduler.tier
    warm(loop, tokens=ids(40, 1))
    shelf.keeps = lambda chain: False
    while (pause := loop.rest()) is not None:
        loop.now += pause
        loop.settle()
    assert shelf.offers < 12


def test_blocks_are_protected_as_long_as_a_pin_has_them() -> None:
    loop = PinLoop(40, tier=Shelf)
    shelf: Any = loop.scheduler.tier
    warm(loop)
    warm(loop, pin_id="b", tokens=SYSTEM[: 2 * BLOCK])
    warm(loop, pin_id="c", tokens=SYSTEM)
    for left, pin_id in ((4, "a"), (2, "c"), (0, "b")):
        loop.unpin(pin_id)
        assert len(shelf.protected) == left


def test_what_a_tier_says_is_why_a_pin_is_missed_before_it_is_there() -> None:
    loop = PinLoop(40, tier=Shelf, budget=6)
    loop.pin(pinned("a", SYSTEM))
    loop.ask(1, [*SYSTEM, 1])
    loop.settle()
    assert loop.pins.misses == {"fingerprint": 1}
    loop = PinLoop(40, budget=6)
    loop.pin(pinned("a", SYSTEM))
    loop.ask(1, [*SYSTEM, 1])
    loop.settle()
    assert loop.pins.misses == {"warming": 1}
    assert loop.cache_stats.pinned_misses == {"warming": 1}


def traffic(draw: random.Random, capacity: int) -> Iterator[tuple[str, Any]]:
    """What happens to an engine whose cache has so many tokens."""
    heads = [ids(draw.randrange(1, capacity // 2), 100 + n) for n in range(4)]
    for number in range(40):
        kind = draw.choice(["job", "job", "job", "pin", "unpin", "abort", "reset", "time"])
        if kind == "job":
            prompt = (draw.choice(heads) + ids(draw.randrange(1, 12), number))[: capacity - 2]
            yield "job", (number, prompt, draw.randrange(1, min(30, capacity - len(prompt)) + 1), draw.randrange(2))
        elif kind == "pin":
            head = draw.choice(heads)
            yield (
                "pin",
                pinned(str(draw.randrange(6)), head[: draw.randrange(len(head) + 1)], draw.choice(["", "", "x"])),
            )
        elif kind == "abort":
            yield "abort", draw.randrange(40)
        else:
            yield kind, str(draw.randrange(6))


@pytest.mark.parametrize("overlap", [False, True], ids=["one", "two-in-flight"])
@pytest.mark.parametrize("seed", range(40))
def test_with_any_mix_of_pins_and_jobs_every_job_has_its_answer(seed: int, overlap: bool) -> None:
    """Also those as large as the pool; integrity and the pins' share are checked after each step."""
    draw = random.Random(seed)
    loop = PinLoop(
        draw.choice([3, 4, 8, 12, 20, 40]), seqs=draw.randrange(1, 6), budget=draw.randrange(6, 40), overlap=overlap
    )
    wanted: dict[int, list[int]] = {}
    for kind, what in traffic(draw, loop.pool.num_blocks * BLOCK):
        if kind == "job":
            number, prompt, most, priority = what
            wanted[number] = answer(prompt, most)
            loop.ask(number, prompt, most, priority=priority)
        elif kind == "pin":
            loop.pin(what)
        elif kind == "unpin":
            loop.unpin(what)
        elif kind == "abort":
            loop.abort(what)
            wanted.pop(what, None)
        elif kind == "reset":
            loop.pins.let_go_all()
            loop.pool.forget_all()
        else:
            loop.now += draw.random() * 2 * _PAUSE
        for _ in range(draw.randrange(6)):
            if loop.has_work:
                loop.step()
    loop.settle()
    assert {number: loop.answers[number] for number in wanted} == wanted
    for _ in range(3):
        loop.now += 2 * _PAUSE
        loop.settle()
    for state in loop.states.values():
        assert state.tier == "gpu" or state.problem in ("too_short", "no_room"), state
    for pin_id in list(loop.states):
        loop.unpin(pin_id)
    loop.settle()
    assert loop.pool.num_free == loop.pool.num_blocks
    assert loop.rest() is None
