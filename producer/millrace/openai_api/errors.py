"""Every error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

`code` is the ErrorCode of Millrace where there is one. OpenAI's clients repeat a request that got 408, 409, 429 or 5xx;
`x-should-retry: false` keeps them from it where a repeat can only cost more.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from millrace.errors import (
    ClientClosed,
    NotPermitted,
    PartlySubmitted,
    RateLimited,
    ResultUnavailable,
    TooManyJobs,
)
from millrace_schemas import (
    ErrorCode,
    InvalidRequest,
    JobError,
    JobNotFound,
    MillraceError,
    QueueUnavailable,
    ResultTimeout,
    UnknownModel,
)

from .rate_headers import retry_headers

#: Seconds after which it is worth asking again when Redis or the workers were away.
RETRY_AFTER = 5

_INVALID, _SERVER = "invalid_request_error", "server_error"
_NO_RETRY = {"x-should-retry": "false"}
#: What a job that ended without an answer means to whoever waits for it; all others are 500.
_STATUS_OF_CODE: Mapping[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.JOB_TOO_LARGE: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.KV_CAPACITY_EXCEEDED: 400,
    ErrorCode.NO_CHAT_TEMPLATE: 400,
    ErrorCode.TOKENIZATION_FAILED: 400,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.CANCELLED: 409,
    ErrorCode.DEADLINE_EXCEEDED: 504,
}
#: OpenAI's names, where programs know them.
_CODE_NAMES: Mapping[ErrorCode, str] = {ErrorCode.UNKNOWN_MODEL: "model_not_found"}


class ApiError(Exception):
    """An error as an HTTP answer. `param` names the field, or header, at fault; `extra` joins the four usual keys."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = _INVALID if status < 500 else _SERVER
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def body(self) -> dict[str, Any]:
        """For an answer, or for an event of a stream whose status is already sent."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code, **self.extra}
        return {"error": error}

    def raw(self) -> bytes:
        """An answer for a connection on which nothing was understood, and which ends with it."""
        body = msgspec.json.encode(self.body())
        headers = {
            **self.headers, "content-type": "application/json", "content-length": str(len(body)), "connection": "close"
        }  # fmt: skip
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n{head}\r\n".encode() + body


def invalid(message: str, param: str | None = None, code: str = "invalid_request") -> ApiError:
    """A 400."""
    return ApiError(400, message, param=param, code=code)


def error_of(error: Exception) -> ApiError:
    """What a client is told about `error`. Of one that nobody expected it learns nothing but that."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequest):
        return _of_code(error.code, str(error), error.param)
    if isinstance(error, JobError):
        return _of_code(error.error.code, error.error.message, error.error.param)
    if isinstance(error, UnknownModel):
        return ApiError(404, str(error), code="model_not_found", param="model")
    if isinstance(error, JobNotFound):
        return ApiError(404, str(error), code="job_not_found")
    if isinstance(error, RateLimited):
        return _too_fast(error)
    if isinstance(error, TooManyJobs):
        return too_many(str(error), "requests", "too_many_jobs", retry_headers(RETRY_AFTER))
    if isinstance(error, NotPermitted):
        return ApiError(403, str(error), code="operator_key_required")
    if isinstance(error, PartlySubmitted):
        lists = {"submitted": error.submitted, "unsure": error.unsure}
        return ApiError(503, str(error), code="partly_submitted", headers=_NO_RETRY, extra=lists)
    if isinstance(error, QueueUnavailable | ClientClosed):
        return unavailable(str(error), "queue_unavailable")
    if isinstance(error, ResultTimeout):
        return ApiError(504, str(error), code="result_timeout", headers=_NO_RETRY)
    if isinstance(error, ResultUnavailable):
        return ApiError(502, str(error), code="result_unavailable")
    if isinstance(error, MillraceError):
        return ApiError(500, str(error), code="internal")
    return ApiError(500, "the gateway failed; its log says why", code="internal")


def unavailable(message: str, code: str) -> ApiError:
    """A 503 that may have passed soon."""
    return ApiError(503, message, code=code, headers={"retry-after": str(RETRY_AFTER)})


def too_many(message: str, type_: str, code: str, headers: Mapping[str, str]) -> ApiError:
    """A 429; its type is, as with OpenAI, what there was too much of: "requests" or "tokens"."""
    error = ApiError(429, message, code=code, headers=headers)
    error.type = type_
    return error


def _too_fast(error: RateLimited) -> ApiError:
    # A request that is larger than its allowance will always be.
    headers = _NO_RETRY if error.retry_after is None else retry_headers(error.retry_after)
    return too_many(str(error), error.what, "rate_limit_exceeded", headers)


def _of_code(code: ErrorCode, message: str, param: str | None) -> ApiError:
    status = _STATUS_OF_CODE.get(code, 500)
    headers = _NO_RETRY if status >= 409 and not code.retryable else None
    return ApiError(status, message, param=param, code=_CODE_NAMES.get(code, str(code)), headers=headers)
