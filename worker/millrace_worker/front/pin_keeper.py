"""Keeps queue and engine agreed about pins: jobs make them, the registry holds them, hits prolong them."""

from __future__ import annotations

import asyncio
import contextlib
import time

import redis
import structlog

from millrace_schemas import InvalidRequest, Pin, WorkerCache, pin_id
from millrace_schemas.pin import DEFAULT_CACHE_TTL
from millrace_worker.frames import Ready
from millrace_worker.stream.pin_writer import PinWriter
from millrace_worker.stream.pins import PinRegistry, PinWish

from .job import Job
from .pin_book import PinBook
from .pin_prefix import PinPrefixes
from .text import TextTools

log = structlog.get_logger(__name__)

#: Seconds between two looks at the registry without a message; what a message said that was lost is found then.
_READ_EVERY = 5.0
#: Pins that are used are prolonged this often, at most.
_REFRESH_EVERY = 5.0
#: A notice is written when something has changed, this often at most, and again after the second.
_TELL_EVERY, _TELL_AGAIN = 1.0, 10.0
#: A job waits no longer for its pin to be written.
_PUT_TIMEOUT = 2.0


class PinKeeper:
    """`warm` once, then `run` until cancelled, then `leave`. Without a Redis all goes on as it was."""

    def __init__(self, registry: PinRegistry, book: PinBook, tools: TextTools, worker: str):
        self._registry = registry
        self._book = book
        self._prefixes = PinPrefixes(tools)
        self._worker = worker
        self._writer = PinWriter(registry)
        self._stale = asyncio.Event()
        self._read_at = self._refresh_at = self._told_at = float("-inf")

    def look_again(self) -> None:
        """The registry has changed."""
        self._stale.set()
        self._book.changed.set()

    async def pin(self, job: Job, ready: Ready) -> None:
        """Pins the beginning of a job's prompt as its request asks; whatever goes wrong, the job runs.

        Returns when a pin that is new is in the registry; one that is known is prolonged meanwhile.
        """
        request, salt = job.request, job.request.effective_salt
        ids, problem = job.prompt, ""
        try:
            ids = await self._prefixes.of(request, job.prompt)
        except InvalidRequest as e:
            problem = str(e)
        if len(ids) < ready.block_size:
            problem = f"it is shorter ({len(ids)}) than a block of {ready.block_size} tokens, the least that is kept"
        pin = Pin(id=pin_id(salt, ids), token_ids=tuple(ids), cache_salt=salt)
        ttl = request.cache_ttl or DEFAULT_CACHE_TTL
        written = self._writer.put(PinWish(job.id, pin, ttl, request.tenant, problem))
        if not problem and pin.id not in self._book:
            await asyncio.wait((written,), timeout=_PUT_TIMEOUT)

    async def warm(self, timeout: float) -> None:
        """Returns when the engine holds what is pinned, says why it does not, or `timeout` seconds are over."""
        began = time.monotonic()
        try:
            await self._read()
        except (redis.RedisError, OSError) as e:
            log.warning("cannot read what is pinned; it is looked at again while this worker serves", error=str(e))
            return
        ids = self._book.ids
        if not ids:
            return
        log.info("waiting for pinned prefixes", pins=len(ids))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._book.unsettled(ids):
                    self._book.changed.clear()
                    await self._book.changed.wait()
        missing = self._book.unsettled(ids)
        problems = {held.id: held.problem for held in self._book.held() if held.problem}
        say = log.warning if missing or problems else log.info
        say(
            "pinned prefixes", seconds=round(time.monotonic() - began, 2),
            resident=len(set(ids) - set(missing) - set(problems)), not_yet=missing, problems=problems,
        )  # fmt: skip

    async def run(self) -> None:
        """Follows the registry and the engine."""
        while True:
            try:
                await self._step()
            except (redis.RedisError, OSError) as e:
                # The reader says it louder, and this is tried again at once anyway.
                log.debug("pins cannot be looked at", error=str(e))
            # Many changes in a row are one step.
            await asyncio.sleep(0.1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._book.changed.wait(), _TELL_EVERY)

    async def leave(self) -> None:
        """Takes the notice back. Raises redis.RedisError and OSError."""
        await self._registry.leave()

    async def _step(self) -> None:
        now = time.monotonic()
        if self._stale.is_set() or now >= self._read_at + _READ_EVERY:
            await self._read()
        if now >= self._refresh_at + _REFRESH_EVERY and (used := self._book.used()):
            self._refresh_at = now
            await self._registry.refresh(list(used))
            self._book.prolonged(used)
        changed = self._book.changed.is_set()
        if now >= self._told_at + (_TELL_EVERY if changed else _TELL_AGAIN):
            self._book.changed.clear()
            await self._registry.tell(WorkerCache(worker=self._worker, at=time.time(), pins=self._book.held()))
            self._told_at = now

    async def _read(self) -> None:
        self._stale.clear()
        self._book.found(await self._registry.read(self._book.ids))
        self._read_at = time.monotonic()
