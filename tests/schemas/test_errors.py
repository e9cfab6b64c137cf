"""Errors on the wire and in Python."""

from __future__ import annotations

import pytest

from millrace_schemas import (
    DecodeError,
    ErrorCode,
    ErrorInfo,
    InvalidRequest,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    JobNotFound,
    MillraceError,
    ResultTimeout,
    UnknownModel,
)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (InvalidRequest, ValueError),
        (DecodeError, ValueError),
        (UnknownModel, LookupError),
        (JobNotFound, LookupError),
        (ResultTimeout, TimeoutError),
    ],
)
def test_errors_are_also_the_builtin_that_callers_expect(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)
    assert issubclass(error, MillraceError)


@pytest.mark.parametrize("error", [JobFailed, JobCancelled, JobExpired])
def test_a_job_error_says_which_job_and_why(error: type[JobError]) -> None:
    raised = error("demo-1", ErrorInfo(ErrorCode.ENGINE_FAILED, "the engine died"))
    assert str(raised) == "demo-1: the engine died [engine_failed]"
    assert raised.error.code is ErrorCode.ENGINE_FAILED


def test_only_failures_of_the_machinery_are_retryable() -> None:
    assert {code for code in ErrorCode if code.retryable} == {
        ErrorCode.RESULT_STORE_FAILED,
        ErrorCode.ENGINE_FAILED,
        ErrorCode.INTERNAL,
    }
