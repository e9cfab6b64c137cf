"""The registry of a queue's pins in Redis: the truth about which prefixes are to stay in the workers' caches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import redis.asyncio
import structlog

from millrace_schemas import DecodeError, Pin, QueueKeys, WorkerCache, decode, encode
from millrace_schemas.pin import LEAST_PIN_TOKENS

from .scripts import PIN_NOTE, PIN_PUT, PIN_READ, PIN_REFRESH, Call, run

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

    async def put(self, pin: Pin, ttl: float, tenant: str, job_id: str) -> str:
        """Pins it for `ttl` seconds from now, or longer where it is pinned longer, and notes it in the job.

        Returns why it was not done: a limit; "" when it was.
        """
        keys = (*self._all, self._keys.job(job_id), self._keys.control)
        terms = (len(pin.token_ids), ttl, tenant, self._limits.queue, self._limits.tenant, LEAST_PIN_TOKENS)
        reply = await run(self._client, Call(PIN_PUT, keys, (pin.id, b"", *terms)))
        if reply[0] == b"unknown":
            reply = await run(self._client, Call(PIN_PUT, keys, (pin.id, encode(pin), *terms)))
        if reply[0] == b"pinned":
            return ""
        whose, most, flag = (
            ("the queue", self._limits.queue, "--max-pinned-tokens")
            if reply[0] == b"queue_full"
            else (f"tenant {tenant}", self._limits.tenant, "--max-pinned-tokens-per-tenant")
        )
        return (
            f"{len(pin.token_ids):,} tokens do not fit beside the {int(reply[1]):,} that {whose} has pinned, of at "
            f"most {most:,}; evict some (millrace cache evict) or raise the workers' {flag}"
        )

    async def note(self, job_id: str, problem: str) -> None:
        """Says in the job why its prompt was not pinned."""
        await run(self._client, Call(PIN_NOTE, (self._keys.job(job_id),), (problem,)))

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
