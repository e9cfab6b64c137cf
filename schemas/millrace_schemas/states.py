"""The states of a job and every move between them. Nothing else in Millrace decides whether a move is legal.

Form after h11's state tables: transitions are data, an unknown move raises and changes nothing. The Lua scripts that
perform the moves in Redis are tested against this table.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType

from .errors import IllegalTransition


class JobState(StrEnum):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class JobEvent(StrEnum):
    #: A worker took the job, or took it over from one whose lease ran out.
    LEASE = "lease"
    #: The worker gives the job back: a retry after a back-off, or a hand-over while it drains.
    REQUEUE = "requeue"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})

TRANSITIONS: MappingProxyType[JobState, MappingProxyType[JobEvent, JobState]] = MappingProxyType(
    {
        JobState.QUEUED: MappingProxyType(
            {
                JobEvent.LEASE: JobState.IN_PROGRESS,
                JobEvent.FAIL: JobState.FAILED,
                JobEvent.CANCEL: JobState.CANCELLED,
                JobEvent.EXPIRE: JobState.EXPIRED,
            }
        ),
        JobState.IN_PROGRESS: MappingProxyType(
            {
                JobEvent.LEASE: JobState.IN_PROGRESS,
                JobEvent.REQUEUE: JobState.QUEUED,
                JobEvent.COMPLETE: JobState.COMPLETED,
                JobEvent.FAIL: JobState.FAILED,
                JobEvent.CANCEL: JobState.CANCELLED,
                JobEvent.EXPIRE: JobState.EXPIRED,
            }
        ),
        JobState.COMPLETED: MappingProxyType({}),
        JobState.FAILED: MappingProxyType({}),
        JobState.CANCELLED: MappingProxyType({}),
        JobState.EXPIRED: MappingProxyType({}),
    }
)


def advance(state: JobState, event: JobEvent) -> JobState:
    """The state after `event`.

    Raises IllegalTransition when the table has no such move.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"a job in state {state!s} has no move {event!s}") from None
