"""Stop strings, whole and cut into pieces in every way."""

from __future__ import annotations

import random

import pytest

from millrace_worker.stop import StopChecker


def run(text: str, stops: tuple[str, ...], cuts: list[int]) -> tuple[str, str | None]:
    checker, out, at = StopChecker(stops), "", 0
    for cut in [*cuts, len(text)]:
        out += checker.push(text[at:cut])
        at = cut
    return out + checker.finish(), checker.matched


@pytest.mark.parametrize(
    ("text", "stops", "want", "matched"),
    [
        ("hello END there", ("END",), "hello ", "END"),
        ("hello there", ("END",), "hello there", None),
        ("ENEND!", ("END",), "EN", "END"),
        ("aab", ("aab", "ab"), "", "aab"),  # both end here: the longer one
        ("abcd", ("abcd", "bc"), "a", "bc"),  # complete first
        ("abab abac", ("abac",), "abab ", "abac"),
        ("xEN", ("END",), "xEN", None),
        ("\n\nUser:", ("\n\n", "User:"), "", "\n\n"),
        ("anything", (), "anything", None),
        ("é🙂é", ("🙂",), "é", "🙂"),
    ],
)
def test_every_way_of_cutting_gives_the_same(text: str, stops: tuple[str, ...], want: str, matched: str | None) -> None:
    for bits in range(2 ** max(len(text) - 1, 0)):
        cuts = [i + 1 for i in range(len(text) - 1) if bits >> i & 1]
        assert run(text, stops, cuts) == (want, matched), cuts


def test_random_texts_against_a_search_of_the_whole() -> None:
    rng = random.Random(4)
    for _ in range(2000):
        text = "".join(rng.choices("ab", k=rng.randint(1, 20)))
        stops = tuple("".join(rng.choices("abc", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3)))
        ends = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
        want = (text[: min(ends)[1]], min(ends)[2]) if ends else (text, None)
        cuts = sorted(rng.sample(range(len(text)), k=rng.randint(0, len(text))))
        assert run(text, stops, cuts) == want, (text, stops, cuts)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    checker = StopChecker(("END", "stop"))
    assert checker.push("hello E") == "hello "
    assert checker.push("N") == ""
    assert checker.push("ds") == "ENd"
    assert checker.push("to") == ""
    assert checker.finish() == "sto"
    assert checker.matched is None


def test_nothing_is_released_after_a_match() -> None:
    checker = StopChecker(("END",))
    assert checker.push("aENDb") == "a"
    assert checker.push("more") == ""
    assert checker.finish() == ""
    assert checker.matched == "END"
