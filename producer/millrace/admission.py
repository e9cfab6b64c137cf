"""Lists of jobs under a limit of unfinished ones: all of a list are made, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from millrace_schemas import QueueKeys

from .backend import JOB_TTL
from .connection import Connection
from .errors import TooManyJobs
from .submission import Submission

#: Seconds in which a list has to be written after its places were kept.
_HOLD = 60


async def admit(connection: Connection, submissions: Sequence[Submission]) -> Sequence[Submission]:
    """`submissions` as they are to be written, with places kept for them.

    Raises TooManyJobs when a tenant has no room for all of its own.
    """
    if len(submissions) < 2:
        # enqueue.lua looks after one by itself.
        return submissions
    groups: dict[tuple[str, str], list[Submission]] = {}
    for submission in submissions:
        if submission.max_unfinished and submission.request.tenant:
            groups.setdefault((submission.queue, submission.request.tenant), []).append(submission)
    if not groups:
        return submissions
    held: list[tuple[str, list[str]]] = []
    for (queue, tenant), group in groups.items():
        keys, ids = QueueKeys(queue), [submission.id for submission in group]
        unfinished, most = keys.unfinished(tenant), min(submission.max_unfinished for submission in group)
        exists = [_trace(keys, submission) for submission in group]
        if not await connection.script("reserve", [unfinished, *exists], [most, JOB_TTL, _HOLD, *ids]):
            await _release(connection, held)
            raise TooManyJobs(tenant, most)
        held.append((unfinished, ids))
    return [replace(submission, max_unfinished=0) for submission in submissions]


def _trace(keys: QueueKeys, submission: Submission) -> str:
    """The key that is there once the job was made."""
    if submission.idempotency_key is None:
        return keys.job(submission.id)
    return keys.idempotency(submission.idempotency_key, submission.request.tenant)


async def _release(connection: Connection, held: Sequence[tuple[str, list[str]]]) -> None:
    for unfinished, ids in held:
        await connection.call(lambda redis, key=unfinished, members=ids: redis.zrem(key, *members))  # type: ignore[misc]
