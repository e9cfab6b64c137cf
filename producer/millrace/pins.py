"""The pins of a queue as seen from outside: what is pinned, until when, and which worker holds it where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from millrace_schemas import HeldPin, InvalidRequest, MillraceError, PinTerms, QueueKeys, WorkerCache, decode, queue_of

from .connection import Connection
from .queue_stats import QueueReader

#: The tier from which a job's first step takes it: the worker's block pool, on a CPU, too.
FASTEST = "gpu"
#: Seconds since its last beat, one a second, in which a worker is asked for. Its notice lives longer.
_ALIVE = 10.0


class PinNotFound(MillraceError, LookupError):
    """No such pin."""


class PinView(msgspec.Struct, frozen=True, kw_only=True):
    """One pin. Seconds count from when it was read."""

    id: str
    #: Whose jobs it serves; "": those that have no tenant.
    tenant: str
    tokens: int
    #: Of its KV, in the workers where that is most; 0 while nobody has said.
    bytes: int
    #: In all workers since each of them started.
    hits: int
    age: float
    #: Seconds for which each use prolongs it, and those that are left.
    ttl: float
    expires_in: float
    #: By the name of each live worker; None: it has not said anything of this pin yet.
    workers: dict[str, HeldPin | None]

    @property
    def is_settled(self) -> bool:
        """Whether every worker holds it in its fastest tier, or says why it does not."""
        return bool(self.workers) and all(
            held is not None and (held.tier == FASTEST or held.problem) for held in self.workers.values()
        )

    @property
    def is_resident(self) -> bool:
        """Whether every worker holds it in its fastest tier, and not only happens to have its blocks there."""
        return bool(self.workers) and all(
            held is not None and held.tier == FASTEST and not held.problem for held in self.workers.values()
        )


class PinReader:
    """Reads, and evicts, the pins of one model's queue."""

    def __init__(self, connection: Connection, model: str):
        self._connection = connection
        self._model = model
        self._queue = QueueReader(connection, model)
        self._keys = QueueKeys(queue_of(model))

    async def all(self) -> list[PinView]:
        """What is pinned, oldest first."""
        keys = self._keys
        now = await self._connection.now()
        ends, terms = await self._connection.run(
            ("ZRANGEBYSCORE", keys.pin_expiry, f"({now}", "+inf", "WITHSCORES"), ("HGETALL", keys.pin_terms)
        )
        if not ends:
            return []
        known = {name.decode(): PinTerms.parse(text) for name, text in _pairs(terms)}
        caches = await self._caches(now)
        views = [
            _view(name.decode(), known[name.decode()], float(at), now, caches)
            for name, at in _pairs(ends)
            if name.decode() in known
        ]
        return sorted(views, key=lambda view: view.age, reverse=True)

    async def evict(self, ids: Sequence[str] | None) -> list[str]:
        """Takes these pins out of the queue, given by what their ids begin with; None or nothing: all of them.

        Returns the ids of those that were there. Workers let go within seconds. Raises PinNotFound, and InvalidRequest
        when several ids begin so; none is then gone.
        """
        keys = self._keys
        names: list[str] = []
        if ids:
            known = await self._connection.run(("ZRANGE", keys.pin_expiry, 0, -1))
            names = [self._resolve(text, [name.decode() for name in known[0]]) for text in ids]
        gone = await self._connection.script(
            "pins_evict", [keys.pins, keys.pin_expiry, keys.pin_terms, keys.control], names
        )
        return [name.decode() for name in gone]

    def _resolve(self, text: str, known: Sequence[str]) -> str:
        found = [name for name in known if text and name.startswith(text)]
        if len(found) > 1:
            raise InvalidRequest(f"{len(found)} pins begin with {text[:80]!r}; give more of the id", param="pin")
        if not found:
            raise PinNotFound(
                f"model {self._model} has no pin {text[:80]!r}, or its time is over; "
                "`millrace cache list` shows those that there are"
            )
        return found[0]

    async def _caches(self, now: float) -> dict[str, dict[str, HeldPin]]:
        """By the names of live workers, what they say of their pins; of older releases nothing."""
        names = [worker.name for worker in await self._queue.workers() if worker.beat_at > now - _ALIVE]
        if not names:
            return {}
        found = await self._connection.run(*(("GET", self._keys.cache(name)) for name in names))
        notices = [() if data is None else decode(data, WorkerCache).pins for data in found]
        return {name: {pin.id: pin for pin in pins} for name, pins in zip(names, notices, strict=True)}


def _view(
    name: str, terms: PinTerms, ends_at: float, now: float, caches: Mapping[str, Mapping[str, HeldPin]]
) -> PinView:
    workers = {worker: pins.get(name) for worker, pins in caches.items()}
    held = [pin for pin in workers.values() if pin is not None]
    return PinView(
        id=name,
        tenant=terms.tenant,
        tokens=terms.tokens,
        bytes=max((pin.bytes for pin in held), default=0),
        hits=sum(pin.hits for pin in held),
        age=max(0.0, now - terms.created_at),
        ttl=terms.ttl,
        expires_in=max(0.0, ends_at - now),
        workers=workers,
    )


def _pairs(reply: Sequence[Any] | Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """What a server answers with as a flat list."""
    if isinstance(reply, Mapping):
        return list(reply.items())
    return list(zip(reply[::2], reply[1::2], strict=True))
