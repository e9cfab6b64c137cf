"""What an API key may use a minute: two buckets in Redis, shared by all gateways.

A job is counted when it is submitted, as one request and as the most tokens that it may use: its prompt (a quarter of
its bytes, unless it has token ids) and its max_tokens, or whatever its model's context leaves room for. When the answer
is handed out by the request that submitted the job, the count becomes what was used. A job that nobody waited for keeps
the first count, and one that was refused for another reason after it was counted is not given back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from millrace_schemas import QueueUnavailable, Result
from millrace_schemas.keys import rate_key

from .connection import Connection
from .errors import RateLimited
from .submission import Submission

_MINUTE = 60.0
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Allowance:
    """One bucket after a look at it: what it takes a minute, what is left, and seconds until it is full."""

    limit: int
    remaining: int
    reset: float


class Meter:
    """Counts the jobs of one request, made with the key `key_id`; limits of 0 mean none."""

    def __init__(self, connection: Connection, key_id: str, *, requests_per_minute: int, tokens_per_minute: int):
        self._connection = connection
        self._key_id = key_id
        self._limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        #: Tokens counted for jobs whose use is not known yet.
        self._counted: dict[str, int] = {}
        #: Of "requests" and "tokens" those that are limited, as they were at the last look; empty before it.
        self.allowances: dict[str, Allowance] = {}

    async def take(self, submissions: Sequence[Submission]) -> None:
        """Counts all of them or none. Raises RateLimited, QueueUnavailable."""
        tokens = {s.id: most_tokens(s) for s in submissions}
        wanted = {"requests": len(submissions), "tokens": sum(tokens.values())}
        taken, waits = await self._run(wanted)
        if not taken:
            # The one that takes longer to refill.
            what = max(waits, key=lambda name: waits[name])
            possible = wanted[what] <= self._limits[what]
            raise RateLimited(self._key_id, what, self._limits[what], wanted[what], waits[what] if possible else None)
        self._counted |= tokens

    def made(self, submission: Submission, job_id: str) -> None:
        """The submission's job: an earlier one when an idempotency key was used again."""
        if submission.id in self._counted:
            self._counted[job_id] = self._counted.pop(submission.id)

    async def settle(self, result: Result) -> None:
        """Makes the count of a job what it used. An answer does not fail because this does."""
        counted = self._counted.pop(result.id, None)
        if counted is None or not self._limits["tokens"]:
            return
        used = result.usage.prompt_tokens + result.usage.completion_tokens
        with suppress(QueueUnavailable):
            await self._run({"requests": 0, "tokens": used - counted}, used=True)

    async def _run(self, wanted: dict[str, int], *, used: bool = False) -> tuple[bool, dict[str, float]]:
        """Whether it was taken, and seconds until there will be as many. A repeat after a lost reply counts twice."""
        arguments: list[Any] = []
        for name, limit in self._limits.items():
            arguments += [wanted[name], limit]
        reply = await self._connection.script("take", [rate_key(self._key_id)], [*arguments, int(used)])
        waits: dict[str, float] = {}
        for i, (name, limit) in enumerate(self._limits.items()):
            waits[name], reset = float(reply[1 + 2 * i]), float(reply[2 + 2 * i])
            if limit:
                left = math.floor((_MINUTE - reset) * limit / _MINUTE + 1e-3)
                self.allowances[name] = Allowance(limit, max(0, left), reset)
        return bool(reply[0]), waits


def most_tokens(submission: Submission) -> int:
    """Tokens of prompt and answer that a job may use, the prompt's estimated."""
    request = submission.request
    if request.prompt_token_ids is not None:
        prompt = len(request.prompt_token_ids)
    else:
        prompt = math.ceil(len(submission.data) / _BYTES_PER_TOKEN)
    room = max(1, submission.context - prompt)
    return min(prompt, submission.context) + min(request.sampling.max_tokens or room, submission.context)
