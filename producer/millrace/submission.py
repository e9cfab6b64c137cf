"""From what a caller says to the bytes of a job: conversions, defaults, and errors that name the field."""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from millrace_schemas import (
    MAX_JOB_BYTES,
    ErrorCode,
    InvalidRequest,
    Lane,
    Message,
    ModelInfo,
    Request,
    Role,
    encode,
    new_job_id,
    queue_of,
)
from millrace_schemas.job import MAX_IDEMPOTENCY_KEY

from .sampling_fields import sampling_fields

#: What `submit` takes besides the idempotency key.
FIELDS = (
    "prompt", "system", "messages", "prompt_token_ids", "model", "sampling", "lane", "result_to", "deadline", "stream",
    "metadata", "webhook", "cache_salt", "cache", "cache_ttl",
)  # fmt: skip

MessageLike = Message | Mapping[str, str]
Deadline = datetime.datetime | datetime.timedelta | float


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked job, ready to be written. Its id is made here, once, so that a repeated write makes one job."""

    id: str
    queue: str
    request: Request
    data: bytes
    idempotency_key: str | None
    #: Unfinished jobs that the request's tenant may have, this one included; 0: any number.
    max_unfinished: int = 0
    #: Tokens of prompt and answer together that its model takes; 0: nobody asked.
    context: int = 0

    @classmethod
    def of(
        cls,
        request: Request,
        idempotency_key: str | None = None,
        max_unfinished: int = 0,
        *,
        context: int = 0,
        job_id: str | None = None,
    ) -> Submission:
        """Raises InvalidRequest on text that is not UTF-8, on too many bytes and on an unusable key."""
        _check_key(idempotency_key)
        queue = queue_of(request.model)
        data = _encode(request)
        return cls(job_id or new_job_id(queue), queue, request, data, idempotency_key, max_unfinished, context)


def build_request(
    fields: Mapping[str, Any], *, model: str, now: float, tenant: str = "", traceparent: str | None = None
) -> Request:
    """The Request that `submit`'s arguments mean; `now` is Redis time.

    Raises InvalidRequest naming the field.
    """
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise InvalidRequest(
            f"no argument is called {unknown[0]!r}; there are {', '.join(FIELDS)} and idempotency_key", param=unknown[0]
        )
    given = {name: value for name, value in fields.items() if value is not None}
    system = given.pop("system", None)
    values: dict[str, Any] = {**given, "model": model, "tenant": tenant, "traceparent": traceparent}
    if system is not None:
        values["messages"] = _with_system(system, values)
        values.pop("prompt", None)
    elif "messages" in values:
        values["messages"] = _messages(values["messages"])
    if "prompt_token_ids" in values:
        values["prompt_token_ids"] = _token_ids(values["prompt_token_ids"])
    if "deadline" in values:
        values["deadline"] = _deadline(values["deadline"], now)
    values["sampling"] = sampling_fields(values.get("sampling", {}))
    return _convert(values)


def recheck_request(request: Request) -> Request:
    """A Request that the caller built: types are checked, which its constructor does not do, and a seed is drawn."""
    values = {name: getattr(request, name) for name in request.__struct_fields__}
    if values["messages"] is not None:
        values["messages"] = _messages(values["messages"])
    values["sampling"] = sampling_fields(request.sampling)
    return _convert(values)


def check_against_model(request: Request, info: ModelInfo) -> None:
    """Raises InvalidRequest on what this model can never run, as its worker would."""
    if request.messages is not None and not info.has_chat_template:
        raise InvalidRequest(
            f"model {info.name} has no chat template; use prompt without system",
            param="messages",
            code=ErrorCode.NO_CHAT_TEMPLATE,
        )
    limit, code = info.max_model_len, ErrorCode.CONTEXT_LENGTH_EXCEEDED
    for name in ("max_tokens", "min_tokens"):
        value = getattr(request.sampling, name)
        if value is not None and value > limit:
            raise InvalidRequest(
                f"sampling.{name} is {value}, and model {info.name} takes {limit} tokens of prompt and answer together",
                param=f"sampling.{name}",
                code=code,
            )
    highest = max(request.sampling.logit_bias, default=0)
    if highest >= info.vocab_size:
        raise InvalidRequest(
            f"sampling.logit_bias holds {highest}; model {info.name} has {info.vocab_size} tokens",
            param="sampling.logit_bias",
        )
    if request.prompt_token_ids is None:
        return
    if len(request.prompt_token_ids) >= limit:
        raise InvalidRequest(
            f"prompt_token_ids has {len(request.prompt_token_ids)} tokens, and model {info.name} takes {limit} "
            "of prompt and answer together",
            param="prompt_token_ids",
            code=code,
        )
    if max(request.prompt_token_ids) >= info.vocab_size:
        raise InvalidRequest(
            f"prompt_token_ids holds {max(request.prompt_token_ids)}; model {info.name} has {info.vocab_size} tokens",
            param="prompt_token_ids",
        )


def _convert(values: dict[str, Any]) -> Request:
    if values["sampling"].get("seed") is None:
        # Drawn here and not by a worker: another attempt at the job then continues the same answer.
        values["sampling"]["seed"] = secrets.randbits(63)
    try:
        return msgspec.convert(values, Request)
    except msgspec.ValidationError as e:
        if isinstance(e.__cause__, InvalidRequest):
            raise e.__cause__ from None
        raise _named(e) from None


def _named(error: msgspec.ValidationError) -> InvalidRequest:
    """The words of msgspec with the field in front: "Expected `int`, got `str` - at `$.sampling.top_k`"."""
    what, _, path = str(error).partition(" - at `")
    param = path.rstrip("`").removeprefix("$").removeprefix(".")
    param = re.sub(r"^key in (.+)$", r"\1", param) or "request"
    what = what[:1].lower() + what[1:]
    if param == "lane":
        what = f"must be {_one_of(Lane)} ({what})"
    if param == "cache":
        what = f'must be "auto" or "pin" ({what})'
    if param.endswith(".role"):
        what = f"must be {_one_of(Role)} ({what})"
    top = re.split(r"\[", param)[0]
    return InvalidRequest(f"{param}: {what.replace('`', '')}", param=top)


def _one_of(names: type[Lane] | type[Role]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _with_system(system: object, values: Mapping[str, Any]) -> list[Any]:
    if not isinstance(system, str):
        raise InvalidRequest(f"system: expected str, got {type(system).__name__}", param="system")
    if "messages" in values or "prompt_token_ids" in values:
        raise InvalidRequest(
            'system goes with prompt alone; put {"role": "system", ...} first in messages instead', param="system"
        )
    if not isinstance(values.get("prompt"), str) or not values["prompt"]:
        raise InvalidRequest("system needs a prompt: the user's message, a non-empty str", param="prompt")
    return [{"role": "system", "content": system}, {"role": "user", "content": values["prompt"]}]


def _messages(messages: object) -> list[Any]:
    shape = '{"role": "user", "content": "..."}'
    if isinstance(messages, str | bytes | Mapping | Message) or not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages: expected a list of {shape}, got {type(messages).__name__}", param="messages")
    converted: list[Any] = []
    for i, message in enumerate(messages):
        if isinstance(message, Message):
            message = {"role": message.role, "content": message.content}
        if not isinstance(message, Mapping):
            raise InvalidRequest(f"messages[{i}]: expected {shape}, got {type(message).__name__}", param="messages")
        converted.append(dict(message))
    return converted


def _token_ids(ids: object) -> Any:
    if isinstance(ids, str | bytes | Mapping):
        raise InvalidRequest(
            f"prompt_token_ids: expected a sequence of int, got {type(ids).__name__}", param="prompt_token_ids"
        )
    # Arrays and tensors of one dimension.
    return ids.tolist() if hasattr(ids, "tolist") else ids


def _deadline(deadline: object, now: float) -> float:
    if isinstance(deadline, datetime.timedelta):
        if deadline <= datetime.timedelta(0):
            raise InvalidRequest("deadline: seconds from now (a timedelta) must be positive", param="deadline")
        return now + deadline.total_seconds()
    if isinstance(deadline, datetime.datetime):
        if deadline.tzinfo is None:
            raise InvalidRequest(
                "deadline: this datetime has no time zone; use datetime.now(datetime.UTC) + ... or a timedelta",
                param="deadline",
            )
        return deadline.timestamp()
    if isinstance(deadline, bool) or not isinstance(deadline, int | float):
        raise InvalidRequest(
            f"deadline: expected datetime, timedelta or Unix seconds, got {type(deadline).__name__}", param="deadline"
        )
    try:
        return float(deadline)
    except OverflowError:
        raise InvalidRequest("deadline is too large for Unix time in seconds", param="deadline") from None


def _check_key(key: object) -> None:
    if key is None:
        return
    if not isinstance(key, str) or not 0 < len(key) <= MAX_IDEMPOTENCY_KEY:
        raise InvalidRequest(
            f"idempotency_key is a str of 1 to {MAX_IDEMPOTENCY_KEY} characters, not {key!r:.80}",
            param="idempotency_key",
        )
    _check_text("idempotency_key", key)


def _encode(request: Request) -> bytes:
    try:
        data = encode(request)
    except OverflowError:
        name = "max_tokens" if (request.sampling.max_tokens or 0) >= 2**63 else "min_tokens"
        raise InvalidRequest(f"sampling.{name} is too large", param=f"sampling.{name}") from None
    except InvalidRequest:
        _find_bad_text(request)
        raise
    if len(data) > MAX_JOB_BYTES:
        name = next(n for n in ("prompt", "prompt_token_ids", "messages") if getattr(request, n) is not None)
        raise InvalidRequest(
            f"{name} is too large: the job has {len(data):,} bytes, and a queue takes at most {MAX_JOB_BYTES:,}",
            param=name,
            code=ErrorCode.JOB_TOO_LARGE,
        )
    return data


def _find_bad_text(request: Request) -> None:
    """Raises InvalidRequest naming the field that is not Unicode; an encoder says only that there is one."""
    _check_text("prompt", request.prompt or "")
    for i, message in enumerate(request.messages or ()):
        _check_text(f"messages[{i}].content", message.content)
    for text in request.sampling.stop:
        _check_text("sampling.stop", text)
    _check_text("result_to", request.result_to)
    _check_text("cache_salt", request.cache_salt)
    for key, value in request.metadata.items():
        _check_text("metadata", key + value)


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise InvalidRequest(
            f"{name} is not valid Unicode and cannot be sent as UTF-8: a lone surrogate at character {e.start}",
            param=name.split("[")[0],
        ) from None
