"""The registry of a queue's pins in Redis: the truth about which prefixes are to stay in the workers' caches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import redis.asyncio
import structlog

from millrace_schemas import DecodeError, Pin, QueueKeys, WorkerCache, decode, encode
from millrace_schemas.pin import LEAST_PIN_TOKENS

from .scripts import PIN_NOTE, PIN_PUT, PIN_READ, PIN_REFRESH, Call, run, run_many

log = structlog.get_logger(__name__)

#: Bytes of pins in one reply, but for its last one.
_MOST_BYTES = 4 * 1024 * 1024
#: Seconds that a worker's notice of its cache is kept.
_NOTICE_TTL = 30


@dataclass(frozen=True, slots=True)
class PinLimits:
    """Tokens of all pins of a queue together, and of those of one tenant."""

    queue: int
    tenant: int


@dataclass(frozen=True, slots=True)
class PinWish:
    """What a job asks to be pinned, or the `problem` because of which it will not be."""

    job_id: str
    pin: Pin
    ttl: float
    tenant: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PinsFound:
    """What is pinned now: all ids, and of those that the reader did not know the pins."""

    ids: frozenset[str] = frozenset()
    new: list[Pin] = field(default_factory=list)


class PinRegistry:
    """Reads and writes it for one worker. Every method may raise redis.RedisError and OSError, and may be repeated."""

    def __init__(self, client: redis.asyncio.Redis, keys: QueueKeys, worker: str, limits: PinLimits):
        self._client = client
        self._keys = keys
        self._worker = worker
        self._limits = limits
        #: Bytes that were complained about.
        self._unreadable: set[bytes] = set()
        self._all = (keys.pins, keys.pin_expiry, keys.pin_terms)

    async def put(self, wishes: Sequence[PinWish]) -> list[str]:
        """Pins what can be pinned, for `ttl` seconds from now, or as long as it already is; notes it in the jobs.

        Returns for each why it was not done; "" when it was.
        """
        problems = [wish.problem for wish in wishes]
        asked = [i for i, wish in enumerate(wishes) if not wish.problem]
        # Mostly they are known, and may have many tokens.
        replies = await run_many(self._client, [self._put(wishes[i], b"") for i in asked])
        found = dict(zip(asked, replies, strict=True))
        unknown = [i for i in asked if not isinstance(found[i], Exception) and found[i][0] == b"unknown"]
        if unknown:
            replies = await run_many(self._client, [self._put(wishes[i], encode(wishes[i].pin)) for i in unknown])
            found.update(zip(unknown, replies, strict=True))
        for i, reply in found.items():
            problems[i] = self._problem(wishes[i], reply)
        notes = [(wish.job_id, problem) for wish, problem in zip(wishes, problems, strict=True) if problem]
        if notes:
            await run_many(self._client, [Call(PIN_NOTE, (self._keys.job(job),), (problem,)) for job, problem in notes])
        return problems

    def _put(self, wish: PinWish, data: bytes) -> Call:
        keys = (*self._all, self._keys.job(wish.job_id), self._keys.control)
        terms = (len(wish.pin.token_ids), wish.ttl, wish.tenant)
        limits = (self._limits.queue, self._limits.tenant, LEAST_PIN_TOKENS)
        return Call(PIN_PUT, keys, (wish.pin.id, data, *terms, *limits))

    def _problem(self, wish: PinWish, reply: list[bytes] | Exception) -> str:
        if isinstance(reply, Exception):
            return f"the queue refuses it: {reply}"
        if reply[0] == b"pinned":
            return ""
        whose, most, flag = (
            ("the queue", self._limits.queue, "--max-pinned-tokens")
            if reply[0] == b"queue_full"
            else (f"tenant {wish.tenant}", self._limits.tenant, "--max-pinned-tokens-per-tenant")
        )
        return (
            f"{len(wish.pin.token_ids):,} tokens do not fit beside the {int(reply[1]):,} that {whose} has pinned, of "
            f"at most {most:,}; evict some (millrace cache evict) or raise the workers' {flag}"
        )

    async def read(self, known: Iterable[str]) -> PinsFound:
        """What is pinned now; pins whose time is over are removed. `known` are ids whose pins the caller has."""
        have, new = list(known), list[Pin]()
        while True:
            call = Call(PIN_READ, (*self._all, self._keys.control), (_MOST_BYTES, *have))
            ids, stored, left_out = await run(self._client, call)
            before = len(new)
            for data in stored:
                try:
                    pin = decode(data, Pin)
                except DecodeError as e:
                    if data not in self._unreadable:
                        self._unreadable.add(data)
                        log.warning("a pin cannot be read; a worker of another release may have made it", error=str(e))
                    continue
                new.append(pin)
                have.append(pin.id)
            if not left_out or len(new) == before:
                return PinsFound(frozenset(pin_id.decode() for pin_id in ids), new)

    async def refresh(self, ids: Sequence[str]) -> None:
        """Prolongs pins that were used, each by its own time to live."""
        await run(self._client, Call(PIN_REFRESH, self._all, tuple(ids)))

    async def tell(self, notice: WorkerCache) -> None:
        """Says what this worker's cache holds."""
        await self._client.set(self._keys.cache(self._worker), encode(notice), ex=_NOTICE_TTL)

    async def leave(self) -> None:
        """Takes that back."""
        await self._client.delete(self._keys.cache(self._worker))
