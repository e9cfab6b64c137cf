"""Job ids: unique, sorted by time, and they give back their queue."""

from __future__ import annotations

import secrets
import time

import pytest

from millrace_schemas import InvalidRequest, new_job_id, queue_of, queue_of_job


@pytest.mark.parametrize(
    ("model", "queue"),
    [
        ("demo", "demo"),
        ("org/model", "org--model"),
        ("org/model-7b-instruct", "org--model-7b-instruct"),
        ("a--b", "a--b"),
        ("-", "-"),
        ("v1.5_x", "v1.5_x"),
    ],
)
def test_an_id_gives_back_its_queue(model: str, queue: str) -> None:
    assert queue_of(model) == queue
    assert queue_of_job(new_job_id(queue)) == queue


@pytest.mark.parametrize("milliseconds", [0, 1, 31, 32, 1_700_000_000_000, 2**48 - 2])
def test_ids_sort_by_time(monkeypatch: pytest.MonkeyPatch, milliseconds: int) -> None:
    """Also when the earlier one drew the highest random bits and the later one the lowest."""
    ids = []
    for now, bits in ((milliseconds, 2**80 - 1), (milliseconds + 1, 0)):
        monkeypatch.setattr(time, "time_ns", lambda ns=now * 1_000_000: ns)
        monkeypatch.setattr(secrets, "randbits", lambda count, bits=bits: bits)
        ids.append(new_job_id("demo"))
    assert ids == sorted(ids)


def test_ids_of_one_millisecond_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    assert len({new_job_id("demo") for _ in range(1000)}) == 1000


def test_the_tail_is_26_characters_that_need_no_quoting() -> None:
    tail = new_job_id("demo").removeprefix("demo-")
    assert len(tail) == 26
    assert tail.isalnum()
    assert tail.isascii()
    assert tail == tail.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "demo",
        "demo-",
        "demo-123",
        "-01jd3vq6x0m5t9n8q2w4e7r1yz",
        "01jd3vq6x0m5t9n8q2w4e7r1yz",
        "demo-01jd3vq6x0m5t9n8q2w4e7r1yzz",
        "demo-01JD3VQ6X0M5T9N8Q2W4E7R1YZ",
        "demo-01jd3vq6x0m5t9n8q2w4e7r1yu",
        "demo_01jd3vq6x0m5t9n8q2w4e7r1yz",
    ],
)
def test_what_is_no_job_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a job id") as caught:
        queue_of_job(text)
    assert caught.value.param == "id"


@pytest.mark.parametrize("model", ["", "a b", "a:b", "{a}", "a" * 201])
def test_a_name_that_cannot_be_a_queue_is_refused(model: str) -> None:
    with pytest.raises(InvalidRequest, match="model names have"):
        queue_of(model)
