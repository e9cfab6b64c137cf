"""Takes due webhooks out of Redis and has them delivered: one of these in each gateway.

Redis alone knows what is due. A gateway takes an entry for a while (its lease), calls, and writes down how that ended;
one that dies leaves entries that fall due again when their leases end. Whoever ends a job publishes its id, so the
first call follows at once; lost messages cost no more than a pause between two looks.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from redis.exceptions import RedisError

from millrace.connection import Connection
from millrace.webhooks.outbox import Claim, Claims, Outbox, Terms, outbox_of
from millrace.webhooks.signature import sign
from millrace_schemas import DecodeError, QueueUnavailable, WebhookState
from millrace_schemas.aio import end_tasks
from millrace_schemas.batch import BATCH_TERMINAL, is_batch_id
from millrace_schemas.keys import WEBHOOK_CHANNELS

from .webhook_event import event_id, event_of, event_of_batch
from .webhook_sender import Answer, Sender
from .webhook_settings import WebhookSettings

_log = logging.getLogger(__name__)

#: Between two looks at the outboxes however much happens, and after a failure; seconds.
_PACE, _AFTER_FAILURE = 0.02, 1.0
#: Between readings of the list of queues: a new one usually makes itself known by its first message.
_QUEUES_EVERY = 10.0
#: That giving back may take when the gateway stops, seconds.
_GIVE_BACK = 2.0
#: Between two looks whether a batch that is about to end has ended, seconds.
_NOT_ENDED = 1.0
_CHANNEL = re.compile(r"millrace:\{(.+)\}:webhooks")
#: As webhooks_claim.lua tells receivers apart.
_RECEIVER = re.compile(r"[A-Za-z]+://([^/?]*)")


class _NotEnded(Exception):
    """There is nothing to be told yet."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One claim being delivered. Times are those of the monotonic clock."""

    claim: Claim
    receiver: str
    #: After which no call begins: it would not be over before the lease is.
    start_by: float
    #: The end of the lease.
    ends: float


class Dispatcher:
    """Delivers while it is `running()`. `counts` and `waiting` are for metrics."""

    def __init__(self, connection: Connection, settings: WebhookSettings, sender: Sender | None = None):
        self._connection = connection
        self._settings = settings
        self._sender = sender or Sender(settings.allowed, settings.timeout)
        self._outbox = Outbox(connection)
        #: Calls by how they ended: delivered, retried, given_up; and lost: entries whose job was gone.
        self.counts: Counter[str] = Counter(delivered=0, retried=0, given_up=0, lost=0)
        #: Entries of each queue's outbox, at the last look.
        self.waiting: dict[str, int] = {}
        #: When each queue is looked at next.
        self._due: dict[str, float] = {}
        #: Queues with due entries whose receivers were busy.
        self._passed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._calls: dict[asyncio.Task[None], _Call] = {}
        #: Entries on their way to us: a gateway that stops has them, whether it waits for them or not.
        self._claiming: asyncio.Task[Claims] | None = None
        self._changed = asyncio.Event()
        self._queues_read_at = float("-inf")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Delivers; at the end waits a little for calls under way, gives back the others, and closes the connection."""
        self._start(self._listen)
        self._start(self._take)
        try:
            yield
        finally:
            self._stopping = True
            await end_tasks(*self._tasks)
            await self._finish()
            self._sender.close()
            await self._connection.close()

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begins `work`, and begins it again should it break: that must not be the end of all deliveries."""
        if self._stopping:
            return
        task = asyncio.create_task(work())
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if self._stopping:
                return
            _log.error(
                "webhooks: %s broke off; it starts anew", task, exc_info=None if task.cancelled() else task.exception()
            )
            asyncio.get_running_loop().call_later(_AFTER_FAILURE, self._start, work)

        task.add_done_callback(ended)

    async def _finish(self) -> None:
        if self._calls:
            await asyncio.wait(self._calls, timeout=self._settings.grace)
        left = [call.claim for call in self._calls.values()]
        await end_tasks(*self._calls)
        # Others may go on with them at once.
        with suppress(TimeoutError, QueueUnavailable):
            async with asyncio.timeout(_GIVE_BACK):
                if self._claiming is not None:
                    left += (await self._claiming).taken
                for claim in left:
                    await self._outbox.settle(claim, WebhookState.PENDING)

    async def _listen(self) -> None:
        """Wakes this gateway when a job with a webhook has ended, over reconnects."""
        while True:
            pubsub = self._connection.commands.pubsub()
            try:
                await pubsub.psubscribe(WEBHOOK_CHANNELS)
                while True:
                    message = await pubsub.get_message(timeout=None)
                    if message is not None:
                        self._hear(message["channel"].decode(errors="replace"))
            except (RedisError, OSError):
                # Said by whoever takes from the outboxes, who needs the same Redis.
                await asyncio.sleep(_AFTER_FAILURE)
            finally:
                await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _hear(self, channel: str) -> None:
        found = _CHANNEL.fullmatch(channel)
        if found is None:
            return
        if channel == WEBHOOK_CHANNELS:
            # The subscription begins: what was published before was not heard.
            self._due = dict.fromkeys(self._due, 0.0)
        else:
            self._due[found[1]] = 0.0
        self._changed.set()

    async def _take(self) -> None:
        away = False
        while True:
            try:
                await self._look()
                away = False
                await asyncio.sleep(_PACE)
                continue
            except QueueUnavailable as e:
                if not away:
                    _log.warning("webhooks wait: %s", e)
                away = True
            await asyncio.sleep(_AFTER_FAILURE)

    async def _look(self) -> None:
        """Takes what is due and there is room for, then waits until there may be more."""
        now = time.monotonic()
        if now >= self._queues_read_at + _QUEUES_EVERY:
            for queue in await self._outbox.queues():
                self._due.setdefault(queue, 0.0)
            self._queues_read_at = now
        self._changed.clear()
        for queue in sorted((q for q, at in self._due.items() if at <= now), key=self._due.__getitem__):
            if len(self._calls) >= self._settings.max_calls:
                break
            await self._take_from(queue)
        full = len(self._calls) >= self._settings.max_calls
        next_at = (
            self._queues_read_at + _QUEUES_EVERY if full else min([*self._due.values(), now + self._settings.poll])
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, next_at - time.monotonic())):
                await self._changed.wait()

    async def _take_from(self, queue: str) -> None:
        settings, now = self._settings, time.monotonic()
        # Before the look: a message that comes meanwhile makes it due again.
        self._due[queue] = now + settings.poll
        room = settings.max_calls - len(self._calls)
        terms = Terms(room, settings.max_calls_per_receiver, settings.lease)
        calls = Counter(call.receiver for call in self._calls.values())
        self._claiming = asyncio.create_task(self._outbox.claim(queue, terms, calls))
        try:
            claims = await asyncio.shield(self._claiming)
        except Exception:
            self._claiming = None
            raise
        self._claiming = None
        self.waiting[queue] = claims.waiting
        self.counts["lost"] += claims.gone
        (self._passed.add if claims.passed else self._passed.discard)(queue)
        if claims.next_in is not None:
            self._due[queue] = min(self._due[queue], time.monotonic() + claims.next_in)
        spare = (settings.lease - settings.timeout) / 2
        for claim in claims.taken:
            call = _Call(claim, _receiver(claim.url), now + spare, now + settings.lease)
            task = asyncio.create_task(self._deliver(call))
            self._calls[task] = call
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._calls[task]
        for queue in self._passed:
            self._due[queue] = 0.0
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a webhook's delivery broke off; it is tried again", exc_info=error)

    async def _deliver(self, call: _Call) -> None:
        claim = call.claim
        if claim.attempt > len(self._settings.delays) + 1:
            await self._settle(call, Answer(reason="gateways died in its last call"))
            return
        try:
            body = await self._body(claim)
            if body is None:
                what = "batch" if is_batch_id(claim.job_id) else "job"
                await self._settle(call, Answer(reason=f"the {what}'s time to live is over"), last=True)
                return
            secrets = await self._outbox.secrets(claim.tenant)
        except _NotEnded:
            await self._give_back(claim, _NOT_ENDED)
            self._look_in(claim, _NOT_ENDED)
            return
        except DecodeError:
            await self._settle(call, Answer(reason="it was written by another release of Millrace"))
            return
        except QueueUnavailable:
            return
        if time.monotonic() > call.start_by:
            await self._give_back(claim)
            return
        headers = {**sign(body, event_id(claim.job_id), int(time.time()), secrets), "user-agent": _user_agent()}
        await self._settle(call, await self._sender.post(claim.url, body, headers))

    async def _body(self, claim: Claim) -> bytes | None:
        """None: what it is made of is gone. Raises _NotEnded, DecodeError, QueueUnavailable."""
        if is_batch_id(claim.job_id):
            batch = await self._outbox.read_batch(claim.job_id)
            if batch is not None and batch.status not in BATCH_TERMINAL:
                raise _NotEnded
            return None if batch is None else event_of_batch(batch)
        found = await self._outbox.read(claim.job_id)
        return None if found is None else event_of(claim.job_id, *found, claim.finished_at)

    async def _give_back(self, claim: Claim, delay: float = 0.0) -> None:
        """As if it had not been taken."""
        with suppress(QueueUnavailable):
            await self._outbox.settle(claim, WebhookState.PENDING, delay=delay)

    def _look_in(self, claim: Claim, delay: float) -> None:
        queue = outbox_of(claim.job_id)
        self._due[queue] = min(self._due[queue], time.monotonic() + delay)

    async def _settle(self, call: _Call, answer: Answer, *, last: bool = False) -> None:
        claim, delays = call.claim, self._settings.delays
        if answer.delivered:
            state, outcome, delay = WebhookState.DELIVERED, "delivered", 0.0
        elif last or answer.gone or claim.attempt > len(delays):
            state, outcome, delay = WebhookState.FAILED, "given_up", 0.0
        else:
            state, outcome = WebhookState.RETRYING, "retried"
            delay = delays[claim.attempt - 1] * random.uniform(1.0, 1.0 + self._settings.jitter)
            delay = max(delay, min(answer.retry_after or 0.0, self._settings.max_retry_after))
        if not await self._write(call, state, answer.error, delay):
            return
        self.counts[outcome] += 1
        if state is WebhookState.RETRYING:
            self._look_in(claim, delay)
        if outcome == "given_up":
            _log.warning("webhook of %s to %s is given up: %s", claim.job_id, call.receiver, answer.error)

    async def _write(self, call: _Call, state: WebhookState, error: str, delay: float) -> bool:
        """False when another gateway sees to it."""
        while True:
            try:
                return await self._outbox.settle(call.claim, state, error, delay)
            except QueueUnavailable:
                if time.monotonic() > call.ends and state is not WebhookState.DELIVERED:
                    return False
            await asyncio.sleep(_AFTER_FAILURE)


@functools.cache
def _user_agent() -> str:
    try:
        return f"Millrace-Webhooks/{version('millrace')} (+https://www.standardwebhooks.com)"
    except PackageNotFoundError:
        # Run from its source.
        return "Millrace-Webhooks (+https://www.standardwebhooks.com)"


def _receiver(url: str) -> str:
    found = _RECEIVER.match(url)
    return found[1].lower() if found else ""
