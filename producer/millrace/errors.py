"""Exceptions that only the client raises, besides those of millrace_schemas.

MillraceError
├── ResultUnavailable     the result is an object in S3 and cannot be fetched
├── ClientClosed          the client was closed, or belongs to another process
├── TooManyJobs           the tenant would have more unfinished jobs than it may have
├── RateLimited           an API key has used what it may use a minute
├── NotPermitted          a tenant asked for what only operators may see
├── WorkerDied            the demo's worker ended before its work was done
└── QueueUnavailable
    └── PartlySubmitted   submit_many broke off; it says which jobs are queued
"""

from __future__ import annotations

from collections.abc import Sequence

from millrace_schemas import MillraceError, QueueUnavailable


class ResultUnavailable(MillraceError):
    """The message names the object and what is wrong; the job itself has ended."""


class ClientClosed(MillraceError):
    """The client's connections are closed."""


class TooManyJobs(MillraceError):
    """No job was made: `tenant` may have `limit` unfinished jobs in a queue, and would have more."""

    def __init__(self, tenant: str, limit: int):
        super().__init__(
            f"{tenant} may have {limit:,} unfinished jobs in a queue, and this makes more; wait until some have ended"
        )
        self.tenant = tenant
        self.limit = limit


class RateLimited(MillraceError):
    """No job was made: `what`, "requests" or "tokens", has a `limit` a minute, and `wanted` were too many.

    `retry_after` is in seconds; None: it can never be, as the limit is smaller than what was wanted.
    """

    def __init__(self, key_id: str, what: str, limit: int, wanted: int, retry_after: float | None):
        then = "that is more than it may ever use at once; ask for less"
        if retry_after is not None:
            then = f"try again in {retry_after:.3g} s"
        super().__init__(f"key {key_id} may use {limit:,} {what} a minute, and this takes {wanted:,}: {then}")
        self.what = what
        self.limit = limit
        self.retry_after = retry_after


class NotPermitted(MillraceError):
    """The message says who may."""


class WorkerDied(MillraceError):
    """`log` holds the worker's last lines."""

    def __init__(self, message: str, log: str):
        super().__init__(message)
        self.log = log


class PartlySubmitted(QueueUnavailable):
    """`submitted` are the ids that are surely queued, in order; `unsure` those that may or may not be.

    The lists cover all requests: `submitted` belong to the first ones, `unsure` to the rest. An id that did not make it
    answers JobNotFound to `state()`.
    """

    def __init__(self, message: str, *, submitted: Sequence[str], unsure: Sequence[str]):
        super().__init__(message)
        self.submitted = tuple(submitted)
        self.unsure = tuple(unsure)
