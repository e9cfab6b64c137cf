"""Error codes that travel with a result, and the exceptions that both halves of Millrace raise.

MillraceError
├── InvalidRequest        the caller asked for something that no worker could run (also a ValueError)
├── DecodeError           bytes from Redis or S3 are not what this build can read (also a ValueError)
├── IllegalTransition     a job was asked to make a move that `states.TRANSITIONS` does not have
├── QueueUnavailable      Redis cannot be reached, refuses us, or is too old
├── UnknownModel          no worker has registered the model
├── JobNotFound           no such job, or its time to live is over
├── ResultTimeout         the result did not come in time; the job goes on (also a TimeoutError)
└── JobError              the job ended without an answer; `.error` is what the worker wrote
    ├── JobFailed
    ├── JobCancelled
    └── JobExpired
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ErrorCode(StrEnum):
    """Why a job has no answer. Stable names: programs may compare them."""

    INVALID_REQUEST = "invalid_request"
    UNKNOWN_MODEL = "unknown_model"
    JOB_TOO_LARGE = "job_too_large"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    KV_CAPACITY_EXCEEDED = "kv_capacity_exceeded"
    NO_CHAT_TEMPLATE = "no_chat_template"
    TOKENIZATION_FAILED = "tokenization_failed"
    UNDECODABLE = "undecodable"
    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    RESULT_STORE_FAILED = "result_store_failed"
    ENGINE_FAILED = "engine_failed"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed: the machinery failed, not the request."""
        return self in _RETRYABLE


_RETRYABLE = frozenset({ErrorCode.RESULT_STORE_FAILED, ErrorCode.ENGINE_FAILED, ErrorCode.INTERNAL})


class ErrorInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The machine-readable end of a job that has no answer."""

    code: ErrorCode
    message: str
    #: The request field at fault, dotted ("sampling.top_p"), where there is one.
    param: str | None = None


class MillraceError(Exception):
    """Root of everything that Millrace raises on purpose."""


class InvalidRequest(MillraceError, ValueError):
    """A request field is out of range; `param` names it, `code` is what a worker would have answered."""

    def __init__(self, message: str, *, param: str | None = None, code: ErrorCode = ErrorCode.INVALID_REQUEST):
        super().__init__(message)
        self.param = param
        self.code = code

    @property
    def info(self) -> ErrorInfo:
        return ErrorInfo(self.code, str(self), self.param)


class DecodeError(MillraceError, ValueError):
    """Stored bytes cannot be read; `data` holds them for the dead stream."""

    def __init__(self, message: str, data: bytes):
        super().__init__(message)
        self.data = data


class IllegalTransition(MillraceError):
    """A job in `state` has no move named `event`."""


class QueueUnavailable(MillraceError):
    """Redis cannot be used; the message says why and what to do."""


class UnknownModel(MillraceError, LookupError):
    """No worker has registered this model within the registration's time to live."""


class JobNotFound(MillraceError, LookupError):
    """The id was never submitted here, or its time to live is over."""


class ResultTimeout(MillraceError, TimeoutError):
    """The wait is over; the job is not."""


class JobError(MillraceError):
    """A job ended in a terminal state that carries no answer."""

    def __init__(self, job_id: str, error: ErrorInfo):
        super().__init__(f"{job_id}: {error.message} [{error.code}]")
        self.job_id = job_id
        self.error = error


class JobFailed(JobError):
    """State `failed`."""


class JobCancelled(JobError):
    """State `cancelled`."""


class JobExpired(JobError):
    """State `expired`: the deadline passed first."""
