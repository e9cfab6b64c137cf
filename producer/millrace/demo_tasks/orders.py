"""Orders: a sentence becomes one line of JSON."""

from __future__ import annotations

import json
from calendar import monthrange
from random import Random

from millrace.demo_tasks.example import Example
from millrace.demo_tasks.numbers import number_words
from millrace.demo_tasks.words import ADJECTIVES, CITIES, NOUNS, invented_word, plural, word_list

_MONTHS = word_list("January February March April May June July August September October November December")
_TEMPLATES = (
    "Please send {order} to {city} by {date}.",
    "Please deliver {order} to {city} on {date}.",
    "We need {order} in {city} on {date}.",
    "We want {order} for our shop in {city}, not later than {date}.",
    "Ship {order} to {city} by {date}.",
    "Send {order} to our office in {city} before {date}, please.",
    "I would like to order {order} for {city}, delivery on {date}.",
    "I would like {order} delivered to {city} on {date}.",
    "Can you bring {order} to {city} by {date}?",
    "Hello, could you send {order} to {city} by {date}? Thanks!",
    "Hi, we are out of stock: {order} to {city} for {date}, please.",
    "On {date} we need {order} in {city}.",
    "By {date}, ship {order} to {city}.",
    "For {date}: {order}, deliver to {city}.",
    "Deliver to {city} on {date}: {order}.",
    "Our customer in {city} ordered {order} for {date}.",
    "The store in {city} asks for {order} on {date}.",
    "{city} needs {order} by {date}.",
    "Order: {order}, {city}, {date}",
    "New order for {city}: {order}, due {date}.",
    "{order} to {city}, {date}",
    "{order} for {city} on {date}",
    "Delivery date {date}, city {city}, goods: {order}.",
    "It is urgent. {city} must have {order} by {date}.",
)
_DOZENS = ((6, "half a dozen"), (12, "a dozen"), (24, "two dozen"))


def _quantity(rng: Random) -> tuple[int, str]:
    """An amount, and how the sentence says it."""
    kind = rng.random()
    if kind < 0.6:
        amount = rng.randint(1, rng.choice((9, 99, 999)))
        return amount, str(amount)
    if kind < 0.85:
        amount = rng.randint(1, 20)
        return amount, number_words(amount)
    return rng.choice(_DOZENS)


def _item(rng: Random, amount: int) -> str:
    noun = rng.choice(NOUNS) if rng.random() < 0.8 else invented_word(rng)
    words = [noun if amount == 1 else plural(noun)]
    if rng.random() < 0.75:
        words.insert(0, rng.choice(ADJECTIVES))
    if rng.random() < 0.25:
        words.insert(0, invented_word(rng).capitalize())
    return " ".join(words)


def _city(rng: Random) -> str:
    name = rng.choice(CITIES) if rng.random() < 0.4 else invented_word(rng).capitalize()
    return f"{rng.choice(('New', 'Port', 'San', 'Upper', 'East'))} {name}" if rng.random() < 0.2 else name


def _date(rng: Random) -> tuple[str, str]:
    """A day as year-month-day, and how the sentence says it."""
    year, month = rng.randint(2025, 2029), rng.randint(1, 12)
    day = rng.randint(1, monthrange(year, month)[1])
    iso = f"{year}-{month:02}-{day:02}"
    name = _MONTHS[month - 1]
    return iso, rng.choice((f"{day} {name} {year}", f"{name} {day}, {year}", iso))


def make_order(rng: Random) -> Example:
    """An order sentence and its JSON: item and city as written, quantity in digits, date as year-month-day."""
    amount, said_amount = _quantity(rng)
    item, city = _item(rng, amount), _city(rng)
    date, said_date = _date(rng)
    text = rng.choice(_TEMPLATES).format(order=f"{said_amount} {item}", city=city, date=said_date)
    fields = {"item": item, "quantity": amount, "city": city, "date": date}
    answer = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return Example("orders", text[0].upper() + text[1:], answer, answer)
