"""What a fake answers: from a test's plain values to how a job ends."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from millrace_schemas import (
    TERMINAL,
    ErrorCode,
    ErrorInfo,
    InvalidRequest,
    JobError,
    JobState,
    Request,
    Result,
)

#: A text, whole or as the pieces that `events()` yields; a whole result; or why there is none.
Answer = str | Sequence[str] | Result | ErrorCode | ErrorInfo | Exception
#: One answer to everything, answers by `prompt_text`, or a function of the request. None echoes the prompt.
Answers = Answer | Mapping[str, Answer] | Callable[[Request], Answer] | None

_PIECE = re.compile(r"\s*\S+|\s+$")
_STATES = {ErrorCode.CANCELLED: JobState.CANCELLED, ErrorCode.DEADLINE_EXCEEDED: JobState.EXPIRED}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ends: with `pieces` of text, with `error`, or as `result` says."""

    state: JobState
    pieces: tuple[str, ...] = ()
    error: ErrorInfo | None = None
    result: Result | None = None

    @classmethod
    def of(cls, answer: Answer) -> Ending:
        """Raises TypeError on what is no answer, ValueError on a Result that no worker could write."""
        # An ErrorCode is a str, too.
        if isinstance(answer, ErrorCode):
            return cls.failed(ErrorInfo(answer, f"the test's answer is {answer}"))
        if isinstance(answer, str):
            return cls(JobState.COMPLETED, split(answer))
        if isinstance(answer, ErrorInfo):
            return cls.failed(answer)
        if isinstance(answer, Exception):
            return cls.failed(_error_of(answer))
        if isinstance(answer, Result):
            return cls._given(answer)
        if isinstance(answer, Sequence) and all(isinstance(piece, str) for piece in answer):
            return cls(JobState.COMPLETED, tuple(answer))
        raise TypeError(
            "an answer is a str, a sequence of str, a Result, an ErrorCode, an ErrorInfo or an exception, "
            f"not {type(answer).__name__}"
        )

    @classmethod
    def failed(cls, error: ErrorInfo) -> Ending:
        return cls(_STATES.get(error.code, JobState.FAILED), error=error)

    @classmethod
    def _given(cls, result: Result) -> Ending:
        if result.state not in TERMINAL:
            raise ValueError(f"a result's state is terminal, not {result.state}")
        if (result.state is JobState.COMPLETED) != (result.error is None):
            raise ValueError("a result has an error if and only if its state is not completed")
        return cls(result.state, error=result.error, result=result)


def find_answer(answers: Answers, request: Request) -> Ending:
    """How the job of `request` ends; what goes wrong here ends it as failed, with the reason."""
    try:
        if answers is None:
            return Ending.of(prompt_text(request))
        if isinstance(answers, Mapping):
            return Ending.of(_look_up(answers, prompt_text(request)))
        return Ending.of(answers(request) if callable(answers) else answers)
    except Exception as e:  # noqa: BLE001 - a test's function may raise anything; its job says what
        return Ending.of(e)


def prompt_text(request: Request) -> str:
    """The prompt, the last message's content, or the token ids with spaces between."""
    if request.messages is not None:
        return request.messages[-1].content
    if request.prompt is not None:
        return request.prompt
    return " ".join(map(str, request.prompt_token_ids or ()))


def split(text: str) -> tuple[str, ...]:
    """Words with the space before them: what the fake takes for tokens."""
    return tuple(_PIECE.findall(text))


def token_id(piece: str, vocab_size: int) -> int:
    """An id for a piece, the same in every run."""
    return zlib.crc32(piece.encode()) % vocab_size


def count_prompt(request: Request) -> int:
    """Tokens of the prompt, as the fake counts them."""
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    texts = [m.content for m in request.messages or ()] if request.prompt is None else [request.prompt]
    return sum(len(split(text)) for text in texts)


def _look_up(answers: Mapping[str, Answer], text: str) -> Answer:
    try:
        # Not `get`: a defaultdict answers what it does not hold.
        return answers[text]
    except KeyError:
        return ErrorInfo(ErrorCode.INTERNAL, f"the test's answers have none for {text!r:.200}")


def _error_of(error: Exception) -> ErrorInfo:
    if isinstance(error, JobError):
        return error.error
    if isinstance(error, InvalidRequest):
        return error.info
    return ErrorInfo(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")
