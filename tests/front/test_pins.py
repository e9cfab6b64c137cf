"""Which part of a prompt is pinned, and what an engine is told of pins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fake_text import LetterTokenizer
from front_parts import READY
from millrace_schemas import HeldPin, InvalidRequest, Message, Pin, Request, Role
from millrace_worker.frames import PinnedPrefix, PinState
from millrace_worker.front.pin_book import PinBook
from millrace_worker.front.pin_prefix import PinPrefixes, common
from millrace_worker.front.text import TextTools
from millrace_worker.stop import StopChecker
from millrace_worker.stream.pins import PinsFound


class ChatTokenizer(LetterTokenizer):
    """A template with marks around each message, and with a date."""

    def __init__(self) -> None:
        self.date = "1"
        self.rendered = 0

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        self.rendered += 1
        if messages[0].content == "broken" and messages[-1].content == "a":
            raise ValueError("no such role")
        text = f"{self.date}" + "".join(f"<{m.role}>{m.content}" for m in messages)
        return self.encode(text + "<assistant>")


def pinned(tokenizer: ChatTokenizer, prefixes: PinPrefixes, *turns: tuple[Role, str]) -> str:
    request = Request(model="letters", messages=tuple(Message(*turn) for turn in turns))
    prompt = tokenizer.encode_chat(request.messages or ())
    return "".join(map(chr, asyncio.run(prefixes.of(request, prompt))))


def test_the_part_that_system_messages_make() -> None:
    tokenizer = ChatTokenizer()
    prefixes = PinPrefixes(TextTools(tokenizer, StopChecker))
    system = (Role.SYSTEM, "be brief")
    for user in ("hello", "a", "also", "0", ""):
        assert pinned(tokenizer, prefixes, system, (Role.USER, user)) == "1<system>be brief<user>", user
    assert pinned(tokenizer, prefixes, system, (Role.SYSTEM, "x"), (Role.USER, "b")) == (
        "1<system>be brief<system>x<user>"
    )
    assert pinned(tokenizer, prefixes, system, (Role.USER, "b"), system, (Role.USER, "c")) == "1<system>be brief<user>"
    assert pinned(tokenizer, prefixes, system) == "1<system>be brief<"
    assert pinned(tokenizer, prefixes, (Role.USER, "b")) == "1<user>b<assistant>"


def test_a_prompt_without_messages_is_pinned_whole() -> None:
    prefixes = PinPrefixes(TextTools(ChatTokenizer(), StopChecker))
    for request in (Request(model="m", prompt="abc"), Request(model="m", prompt_token_ids=(1, 2))):
        assert asyncio.run(prefixes.of(request, [5, 6, 7])) == [5, 6, 7]


def test_system_messages_are_rendered_once_until_their_template_changes() -> None:
    tokenizer = ChatTokenizer()
    prefixes = PinPrefixes(TextTools(tokenizer, StopChecker))
    for user in ("one", "two", "three"):
        pinned(tokenizer, prefixes, (Role.SYSTEM, "s"), (Role.USER, user))
    assert tokenizer.rendered == 3 + 2
    tokenizer.date = "2"
    assert pinned(tokenizer, prefixes, (Role.SYSTEM, "s"), (Role.USER, "four")) == "2<system>s<user>"


def test_a_template_that_refuses_the_system_messages_alone() -> None:
    tokenizer = ChatTokenizer()
    prefixes = PinPrefixes(TextTools(tokenizer, StopChecker))
    with pytest.raises(InvalidRequest, match="no such role"):
        pinned(tokenizer, prefixes, (Role.SYSTEM, "broken"), (Role.USER, "b"))


def test_common() -> None:
    assert [common(*pair) for pair in (([], [1]), ([1, 2], [1, 2, 3]), ([1, 2], [1, 3]), ([2], [1]))] == [0, 2, 1, 0]


class Link:
    def __init__(self) -> None:
        self.told: list[str] = []

    def pin(self, prefix: PinnedPrefix) -> None:
        self.told.append(f"+{prefix.pin_id}")

    def unpin(self, pin_id: str) -> None:
        self.told.append(f"-{pin_id}")


def pin_of(name: str, token_ids: tuple[int, ...] = (1,) * 32) -> Pin:
    return Pin(id=name, token_ids=token_ids, cache_salt="s")


def found(*pins: Pin, besides: Sequence[str] = ()) -> PinsFound:
    return PinsFound(frozenset([*(pin.id for pin in pins), *besides]), list(pins))


def test_an_engine_is_told_what_changes() -> None:
    book, link = PinBook(), Link()
    book.found(found(pin_of("a")))
    book.engine_serves(link, READY)
    book.found(found(pin_of("b"), besides=["a"]))
    book.found(found(besides=["b"]))
    assert link.told == ["+a", "+b", "-a"]
    assert book.ids == ["b"]
    assert book.held() == (HeldPin(id="b"),)
    book.on_states([PinState("a", "gpu", 2, 64, 9), PinState("b", "disk", 2, 64, 1)])
    assert book.held() == (HeldPin(id="b", tier="disk", blocks=2, bytes=64, hits=1),)
    assert book.unsettled(["a", "b"]) == ["b"]
    book.on_states([PinState("b", "gpu", 2, 64, 1)])
    assert book.unsettled(["a", "b"]) == []


def test_a_fresh_engine_is_told_all_and_hits_go_on() -> None:
    book, link = PinBook(), Link()
    book.engine_serves(link, READY)
    book.found(found(pin_of("a"), pin_of("b")))
    book.on_states([PinState("a", "gpu", 2, 64, 7), PinState("b", "", 2, 64, 0, "no_room")])
    assert book.used() == {"a": 7}
    book.prolonged({"a": 7, "gone": 1})
    assert book.used() == {}
    book.engine_died()
    book.engine_serves(link, READY)
    assert link.told == ["+a", "+b"] * 2
    assert book.unsettled(["a", "b"]) == ["a", "b"]
    book.on_states([PinState("a", "gpu", 2, 64, 1)])
    assert book.used() == {"a": 8}
    assert book.held()[0].hits == 8


def test_pins_that_no_engine_could_take_are_not_told() -> None:
    book, link = PinBook(), Link()
    book.found(found(pin_of("odd", (1,) * 20 + (1000,)), pin_of("long", (1,) * 100), pin_of("short", (1,) * 15)))
    book.engine_serves(link, READY)
    assert link.told == []
    assert [held.problem for held in book.held()] == ["other_model", "too_long", "too_short"]
    assert book.unsettled(book.ids) == []
    book.found(found())
    assert link.told == []


def test_what_may_kill_engines_is_left_out_at_the_third_start() -> None:
    book, link = PinBook(), Link()
    book.found(found(pin_of("good"), pin_of("bad")))
    book.engine_serves(link, READY)
    book.engine_died()
    book.engine_serves(link, READY)
    assert link.told == ["+good", "+bad", "+good"], "one by one, as either may be it"
    book.on_states([PinState("good", "gpu", 2, 64, 0)])
    assert link.told[3:] == ["+bad"]
    book.engine_died()
    book.changed.clear()
    book.engine_serves(link, READY)
    assert link.told[4:] == ["+good"]
    assert book.changed.is_set()
    book.on_states([PinState("good", "gpu", 2, 64, 0)])
    assert [held.problem for held in book.held()] == ["", "engine_died"]
    assert book.unsettled(book.ids) == []


def test_a_pin_that_is_waited_for_and_goes_holds_up_no_other() -> None:
    book, link = PinBook(), Link()
    book.found(found(pin_of("one"), pin_of("other")))
    book.engine_serves(link, READY)
    book.engine_died()
    book.engine_serves(link, READY)
    book.found(found(besides=["other"]))
    assert link.told[2:] == ["+one", "-one", "+other"]
