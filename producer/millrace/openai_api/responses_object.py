"""A job as OpenAI's Response object. Everything in it comes from the job's id, its request and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from millrace import ErrorCode, FinishReason, InvalidRequest, JobState, Request, Result, Role, TokenLogprob, Usage
from millrace_schemas import queue_of_job
from millrace_schemas.job import time_of_job

from .cached import cached_of
from .errors import ApiError
from .logprobs import output_logprobs
from .responses_body import BACKGROUND, INSTRUCTIONS, MARK

_PREFIX, _ITEM_PREFIX = "resp_", "msg_"
_STATUS: Mapping[JobState, str] = {
    JobState.QUEUED: "queued",
    JobState.IN_PROGRESS: "in_progress",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.EXPIRED: "failed",
}
#: OpenAI has a closed list of codes in `Response.error`; all others are server_error.
_PROMPT_CODES = frozenset(
    {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.JOB_TOO_LARGE,
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        ErrorCode.KV_CAPACITY_EXCEEDED,
        ErrorCode.NO_CHAT_TEMPLATE,
        ErrorCode.TOKENIZATION_FAILED,
    }
)


def response_id(job_id: str) -> str:
    return _PREFIX + job_id


def job_of(response_id: str) -> str:
    """The job behind a response's id. Raises ApiError (404) when the text is no such id."""
    job_id = response_id.removeprefix(_PREFIX)
    try:
        queue_of_job(job_id)
    except InvalidRequest:
        job_id = response_id
    if job_id == response_id:
        raise no_response(response_id)
    return job_id


def no_response(response_id: str) -> ApiError:
    return ApiError(
        404, f"there is no response {response_id[:300]!r}, or its time to live is over", code="response_not_found",
        param="response_id",
    )  # fmt: skip


def text_part(text: str, logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": output_logprobs(logprobs)}


def logprobs_of(result: Result) -> Sequence[TokenLogprob]:
    """None of a job that asked for none."""
    return result.choices[0].logprobs or () if result.choices else ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One job, as a Response."""

    job_id: str
    request: Request

    @property
    def item_id(self) -> str:
        return _ITEM_PREFIX + self.job_id

    @property
    def background(self) -> bool:
        return BACKGROUND in self._marks

    @property
    def _marks(self) -> list[str]:
        return self.request.metadata.get(MARK, "").split()

    def item(self, status: str, text: str | None, logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
        """The one message; text None: it has no part yet."""
        content = [] if text is None else [text_part(text, logprobs)]
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def ended(self, result: Result) -> dict[str, Any]:
        """The Response of a job that has a result."""
        status = status_of(result)
        body = self._body(status)
        if status == "completed":
            body["completed_at"] = int(time_of_job(self.job_id) + result.timings.total)
        if status == "incomplete":
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "failed":
            body["error"] = _error(result)
        if has_output(result):
            body["output"] = [self.item(item_status(result), result.text, logprobs_of(result))]
        if result.state is JobState.COMPLETED or result.usage.total_tokens:
            body["usage"] = usage_of(result.usage)
        return body

    def waiting(self, state: JobState) -> dict[str, Any]:
        """The Response of a job that has no result yet."""
        return self._body(_STATUS[state])

    def _body(self, status: str) -> dict[str, Any]:
        request = self.request
        instructions = None
        if INSTRUCTIONS in self._marks and request.messages and request.messages[0].role is Role.SYSTEM:
            instructions = request.messages[0].content
        return {
            "id": response_id(self.job_id),
            "object": "response",
            "created_at": int(time_of_job(self.job_id)),
            "status": status,
            "background": self.background,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": instructions,
            "max_output_tokens": request.sampling.max_tokens,
            "metadata": {key: value for key, value in request.metadata.items() if key != MARK},
            "model": request.model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "temperature": request.sampling.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": request.sampling.logprobs or 0,
            "top_p": request.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def status_of(result: Result) -> str:
    """An answer that was cut off, by max_output_tokens or by the model's context, is `incomplete`."""
    if result.state is JobState.COMPLETED and result.choices and result.choices[0].finish_reason is FinishReason.LENGTH:
        return "incomplete"
    return _STATUS[result.state]


def item_status(result: Result) -> str:
    return "completed" if status_of(result) == "completed" else "incomplete"


def has_output(result: Result) -> bool:
    """Whether there is a message: an answer, be it empty, or what was there of one when its job ended."""
    return result.state is JobState.COMPLETED or bool(result.text)


def usage_of(usage: Usage) -> dict[str, Any]:
    """Token counts as Responses report them. No count is kept of tokens written to the prefix cache."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {**cached_of(usage), "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }


def _error(result: Result) -> dict[str, str]:
    if result.error is None:
        return {"code": "server_error", "message": f"the job is {result.state}, with no reason"}
    code = "invalid_prompt" if result.error.code in _PROMPT_CODES else "server_error"
    return {"code": code, "message": f"{result.error.message} [{result.error.code}]"}
