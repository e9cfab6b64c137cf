"""Pins prefixes through jobs of one token each, and waits until all workers hold them."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Sequence

import msgspec

from millrace_schemas import InvalidRequest, MillraceError, UnknownModel

from .async_client import AsyncClient
from .async_job import AsyncJob
from .connection import Connection
from .pins import PinReader, PinView
from .prefix_file import Prefix

#: Seconds between two looks at what the workers hold.
_EVERY = 0.2
#: Seconds in which a worker says what became of a pin: mostly before the job ends, but nothing waits for that.
_NOTE_TIMEOUT = 3.0
#: What can be done about a worker's word for why it does not hold a pin.
_WHY_NOT = {
    "no_room": "pins may take a quarter of a worker's KV blocks; evict some, or give the cache more memory",
    "gave_way": "jobs needed its blocks; it comes back when there is room",
    "too_short": "it is shorter than a block of a worker's cache (--block-size)",
    "too_long": "it is longer than a worker's --max-model-len",
    "other_model": "it has token ids that a worker's model does not have",
    "off": "a worker runs with --enable-prefix-caching false",
    "engine_died": "engines died while they loaded it; restart the worker",
}


class Warmed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one prefix."""

    where: str
    job: str
    #: None: nothing is pinned, and `problem` says why.
    pin: PinView | None
    #: Why it is not in the cache of every worker; "" when it is.
    problem: str = ""


async def warm(
    client: AsyncClient, connection: Connection, model: str, prefixes: Sequence[Prefix], *, tenant: str, timeout: float
) -> list[Warmed]:
    """Returns when all workers hold all of them or say why not, or after `timeout` seconds.

    Raises InvalidRequest naming the prefix, UnknownModel, QueueUnavailable.
    """
    limit = time.monotonic() + timeout
    view = client.for_tenant(tenant) if tenant else client
    deadline = datetime.timedelta(seconds=timeout)
    try:
        jobs = await view.submit_many([{**it.fields, "model": model, "deadline": deadline} for it in prefixes])
    except InvalidRequest as e:
        raise _named(e, prefixes) from e
    except UnknownModel as e:
        raise UnknownModel(_parted(e)[1]) from e  # of all of them, not of one
    made = await asyncio.gather(*(_outcome(job, limit) for job in jobs))
    ids = {pin for pin, _ in made if pin is not None}
    reader = PinReader(connection, model)
    while True:
        found = {pin.id: pin for pin in await reader.all() if pin.id in ids}
        if all(pin.is_settled for pin in found.values()) or time.monotonic() > limit:
            break
        await asyncio.sleep(_EVERY)
    return [
        _warmed(prefix.where, job.id, problem, None if pin is None else found.get(pin))
        for prefix, job, (pin, problem) in zip(prefixes, jobs, made, strict=True)
    ]


async def _outcome(job: AsyncJob, limit: float) -> tuple[str | None, str]:
    """The pin that a job made, or why it made none."""
    try:
        result = await job.wait(max(0.1, limit - time.monotonic()))
    except MillraceError:
        return None, "no worker has taken the job in time"
    if result.error is not None:
        return None, result.error.message
    patience = time.monotonic() + _NOTE_TIMEOUT
    while True:
        record = await job.record()
        if record.pin is not None or record.pin_problem:
            return record.pin, record.pin_problem or ""
        if time.monotonic() > patience:
            return None, f"worker {record.worker} does not say whether it is pinned"
        await asyncio.sleep(_EVERY)


def _warmed(where: str, job: str, problem: str, pin: PinView | None) -> Warmed:
    if pin is None:
        return Warmed(where=where, job=job, pin=None, problem=problem or "the pin is gone again: somebody evicted it")
    if not pin.workers:
        problem = "no worker is there"
    elif not pin.is_resident:
        told = {held.problem for held in pin.workers.values() if held is not None and held.problem}
        problem = "; ".join(_explained(word) for word in sorted(told)) or "not every worker holds it yet"
    return Warmed(where=where, job=job, pin=pin, problem=problem)


def _explained(word: str) -> str:
    return f"{word}: {_WHY_NOT[word]}" if word in _WHY_NOT else word


def _named(error: InvalidRequest, prefixes: Sequence[Prefix]) -> InvalidRequest:
    """`requests[3]: ...` with the name of that prefix."""
    number, words = _parted(error)
    if number is None or number >= len(prefixes):
        return error
    return InvalidRequest(f"{prefixes[number].where}: {words}", param=error.param, code=error.code)


def _parted(error: MillraceError) -> tuple[int | None, str]:
    """The number in `requests[3]: ...`, if it begins so, and the words."""
    start, _, words = str(error).partition("]: ")
    number = start.removeprefix("requests[")
    return (int(number), words) if number.isdecimal() else (None, str(error))
