"""Numbers: digits become English words, and words become digits."""

from __future__ import annotations

from random import Random

from millrace.demo_tasks.example import Example
from millrace.demo_tasks.words import word_list

MAX_NUMBER = 999_999

_SMALL = word_list(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen"""
)
_TENS = word_list("twenty thirty forty fifty sixty seventy eighty ninety")
_TO_WORDS = (
    "Write {} in words.",
    "Write the number {} in words.",
    "Spell out {}.",
    "Say {} in words.",
    "How do you write {} in words?",
    "{} in words",
)
_TO_DIGITS = (
    "Write {} in digits.",
    "Write the number {} in digits.",
    "Which number is {}?",
    "Give the digits of {}.",
    "How do you write {} in digits?",
    "{} in digits",
)


def number_words(number: int) -> str:
    """English words of 0 to 999,999, without "and". Raises ValueError outside of that."""
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"number_words knows 0 to {MAX_NUMBER}, not {number}")
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_SMALL[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    high, low = divmod(number, size)
    return f"{number_words(high)} {name}" + (f" {number_words(low)}" if low else "")


def make_number(rng: Random) -> Example:
    """A number of one to six digits, to be written the other way."""
    digits = rng.choice((1, 2, 3, 4, 5, 6, 6))
    number = rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
    words = number_words(number)
    if rng.random() < 0.5:
        text, answer = rng.choice(_TO_WORDS).format(f"{number:,}" if rng.random() < 0.2 else number), words
    else:
        text, answer = rng.choice(_TO_DIGITS).format(words), str(number)
    return Example("numbers", text[0].upper() + text[1:], answer, str(number))
