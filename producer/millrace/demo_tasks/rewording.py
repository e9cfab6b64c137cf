"""Rewording: the user text names a rule, and the words after the colon are changed by it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from millrace.demo_tasks.example import Example
from millrace.demo_tasks.words import NOUNS, PLAIN_WORDS, invented_word, plural

Rule = Callable[[list[str]], str]

#: What the user text may ask for, and how the answer follows from the words.
RULES: dict[str, Rule] = {
    "Uppercase the last word": lambda words: " ".join([*words[:-1], words[-1].upper()]),
    "Uppercase the first word": lambda words: " ".join([words[0].upper(), *words[1:]]),
    "Uppercase every word": lambda words: " ".join(words).upper(),
    "Reverse the word order": lambda words: " ".join(reversed(words)),
    "Swap the first and last word": lambda words: " ".join([words[-1], *words[1:-1], words[0]]),
    "Drop the first word": lambda words: " ".join(words[1:]),
    "Drop the last word": lambda words: " ".join(words[:-1]),
    "Repeat the last word": lambda words: " ".join([*words, words[-1]]),
    "Make a comma separated list": ", ".join,
    "Make every word plural": lambda words: " ".join(plural(word) for word in words),
}


def _word(rng: Random, known: tuple[str, ...]) -> str:
    return rng.choice(known) if rng.random() < 0.75 else invented_word(rng)


def make_rewording(rng: Random) -> Example:
    """Two to seven words in small letters under one of the rules."""
    rule = rng.choice(tuple(RULES))
    known = NOUNS if rule == "Make every word plural" else PLAIN_WORDS
    words = [_word(rng, known) for _ in range(rng.randint(2, 7))]
    text = " ".join(words)
    return Example("rewording", f"{rule}: {text}", RULES[rule](words), text)
