"""API keys as a gateway remembers them: a revocation counts after a few seconds, and most requests ask nobody."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from millrace.api_keys import ApiKey, KeyStore
from millrace_schemas import DecodeError, QueueUnavailable

#: Keys that are remembered, and ids that are none.
_KEYS, _STRANGERS = 10_000, 1_000
#: Seconds that a request waits to learn whose key it has.
_PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class _Seen:
    key: ApiKey | None
    #: By the monotonic clock.
    until: float


class KeyCache:
    """Asks `store` at most once in `seconds` for an id, however many requests bring it at a time.

    Ids that are none have a place of their own, so that guesses push no key out. Without Redis a key that was known
    counts on, and its jobs may be waited for; one that was not raises QueueUnavailable.
    """

    def __init__(self, store: KeyStore, seconds: float):
        self._store = store
        self._seconds = seconds
        self._keys: OrderedDict[str, _Seen] = OrderedDict()
        self._strangers: OrderedDict[str, _Seen] = OrderedDict()
        self._asking: dict[str, asyncio.Task[ApiKey | None]] = {}

    async def find(self, key_id: str, secret: str) -> ApiKey | None:
        """The live key whose id and secret these are; None when there is none. Raises QueueUnavailable."""
        seen = self._keys.get(key_id) or self._strangers.get(key_id)
        key = seen.key if seen is not None and seen.until > time.monotonic() else await self._ask(key_id)
        if key is None or not key.opened_by(secret) or key.expired(time.time()):
            return None
        return key

    async def _ask(self, key_id: str) -> ApiKey | None:
        asking = self._asking.get(key_id)
        if asking is None:
            asking = self._asking[key_id] = asyncio.create_task(self._read(key_id))
            asking.add_done_callback(lambda task: self._asked(key_id, task))
        # Others may wait for the same answer when this request's client leaves.
        return await asyncio.shield(asking)

    def _asked(self, key_id: str, task: asyncio.Task[ApiKey | None]) -> None:
        self._asking.pop(key_id, None)
        if not task.cancelled():
            # Nobody may be left to be told.
            task.exception()

    async def _read(self, key_id: str) -> ApiKey | None:
        known, asked = self._keys.get(key_id), time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE):
                key = await self._store.find(key_id)
        except (QueueUnavailable, TimeoutError) as e:
            if known is None:
                raise QueueUnavailable(f"the key cannot be looked up: {str(e) or 'Redis does not answer'}") from e
            key, asked = known.key, time.monotonic()
        except DecodeError:
            # Another release's. It opens nothing here.
            key = None
        # From the question on: a revocation may have overtaken the answer.
        self._remember(key_id, _Seen(key, asked + self._seconds))
        return key

    def _remember(self, key_id: str, seen: _Seen) -> None:
        self._keys.pop(key_id, None)
        self._strangers.pop(key_id, None)
        place, most = (self._strangers, _STRANGERS) if seen.key is None else (self._keys, _KEYS)
        place[key_id] = seen
        if len(place) > most:
            place.popitem(last=False)
