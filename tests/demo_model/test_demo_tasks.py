"""The demo's questions: the same by seed, with right answers, and split without overlap."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from random import Random

import pytest

from millrace.demo_tasks import (
    PROMPT_OF_TASK,
    REFUSALS,
    SYSTEM_PROMPTS,
    TASKS,
    is_held_out,
    make_example,
    make_examples,
    number_words,
    system_prompt,
)

MONTHS = "January February March April May June July August September October November December".split()  # noqa: SIM905
UNITS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "  # noqa: SIM905
        "seventeen eighteen nineteen".split()
    )
} | {
    "twenty": 20,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
    "seventy": 70,
    "eighty": 80,
    "ninety": 90,
}
DOZENS = {"half a dozen": 6, "two dozen": 24, "a dozen": 12}


def number_of(words: str) -> int:
    """Reads English number words; written apart from the code that writes them."""
    total = part = 0
    for word in words.lower().replace("-", " ").split():
        if word == "thousand":
            total, part = part * 1000, 0
        elif word == "hundred":
            part *= 100
        else:
            part += UNITS[word]
    return total + part


def check_order(user: str, answer: str) -> None:
    fields = json.loads(answer)
    assert list(fields) == ["item", "quantity", "city", "date"]
    text = user.lower()
    assert fields["item"].lower() in text
    assert fields["city"].lower() in text
    day = date.fromisoformat(fields["date"])
    month = MONTHS[day.month - 1]
    said = (f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}", fields["date"])
    assert any(form in user for form in said)
    before_item = text[: text.index(fields["item"].lower())].strip()
    dozens = [amount for words, amount in DOZENS.items() if before_item.endswith(words)]
    last = re.split(r"[\s:]+", before_item)[-1]
    quantity = dozens[0] if dozens else int(last) if last.isdigit() else number_of(last)
    assert fields["quantity"] == quantity


def check_number(user: str, answer: str) -> None:
    digits = re.search(r"\d[\d,]*", user)
    if digits:
        assert number_of(answer) == int(digits[0].replace(",", ""))
    else:
        known = {*UNITS, "hundred", "thousand"}
        words = [word for word in re.findall(r"[a-z]+", user.lower()) if word in known]
        assert number_of(" ".join(words)) == int(answer)


def check_sum(user: str, answer: str) -> None:
    first, second = (int(number) for number in re.findall(r"\d+", user))
    if "Subtract" in user:
        first, second = second, first
    expected = first - second if re.search(r"-|minus|Subtract", user) else first + second
    assert int(answer) == expected


def check_rewording(user: str, answer: str) -> None:
    rule, words = user.split(": ")[0], user.split(": ")[1].split()
    given = answer.replace(",", "").split()
    match rule:
        case "Uppercase the last word" | "Uppercase the first word" | "Uppercase every word":
            assert [word.lower() for word in given] == words
            upper = {"last": {len(words) - 1}, "first": {0}}.get(rule.split()[2], set(range(len(words))))
            assert {i for i, word in enumerate(given) if word.isupper()} == upper
        case "Reverse the word order":
            assert given[::-1] == words
        case "Swap the first and last word":
            given[0], given[-1] = given[-1], given[0]
            assert given == words
        case "Drop the first word":
            assert [words[0], *given] == words
        case "Drop the last word":
            assert [*given, words[-1]] == words
        case "Repeat the last word":
            assert given[:-1] == words
            assert given[-1] == words[-1]
        case "Make a comma separated list":
            assert answer.split(", ") == words
        case "Make every word plural":
            for one, many in zip(words, given, strict=True):
                assert many in (one + "s", one + "es", one[:-1] + "ies")
                assert many.endswith("es") or not one.endswith(("s", "x", "z", "ch", "sh"))
                assert many.endswith("ies") == bool(re.search("([^aeiou]y|ie)$", one))
        case _:
            pytest.fail(f"unknown rule {rule}")


CHECKS: dict[str, Callable[[str, str], None]] = {
    "orders": check_order,
    "numbers": check_number,
    "sums": check_sum,
    "rewording": check_rewording,
}


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right(task: str) -> None:
    for example in make_examples(500, seed=11, task=task):
        assert example.task == task
        CHECKS[task](example.user, example.answer)


def test_same_seed_gives_same_examples() -> None:
    assert make_examples(200, seed=3) == make_examples(200, seed=3)
    assert make_examples(200, seed=3) != make_examples(200, seed=4)


def test_split_has_no_overlap() -> None:
    """Neither a question nor what it is about is on both sides."""
    train = make_examples(4000, seed=5, split="train")
    held_out = make_examples(1000, seed=5, split="held_out")
    for identity in (lambda e: (e.task, e.user), lambda e: (e.task, e.key)):
        assert not {identity(e) for e in train} & {identity(e) for e in held_out}
    assert {example.task for example in held_out} == set(TASKS)


def test_split_holds_out_one_in_twenty() -> None:
    share = sum(map(is_held_out, make_examples(4000, seed=6))) / 4000
    assert 0.035 < share < 0.065


def test_every_task_has_its_system_prompt() -> None:
    assert {system_prompt(task) for task in TASKS} == set(SYSTEM_PROMPTS.values())
    assert set(REFUSALS) == set(SYSTEM_PROMPTS) == set(PROMPT_OF_TASK.values())
    for name, refusal in REFUSALS.items():
        assert refusal in SYSTEM_PROMPTS[name]


def test_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'poems'; the tasks are orders"):
        system_prompt("poems")
    with pytest.raises(ValueError, match="unknown task 'poems'; the tasks are orders"):
        make_example(Random(0), "poems")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (100, "one hundred"),
        (4021, "four thousand twenty-one"),
        (999_999, "nine hundred ninety-nine thousand nine hundred ninety-nine"),
    ],
)
def test_number_words(number: int, words: str) -> None:
    assert number_words(number) == words


@pytest.mark.parametrize("number", [-1, 1_000_000])
def test_number_words_outside_the_range(number: int) -> None:
    with pytest.raises(ValueError, match="knows 0 to 999999"):
        number_words(number)
