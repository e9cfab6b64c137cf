"""/v1/jobs, as the document describes them."""

from __future__ import annotations

from collections.abc import Mapping

from millrace import Event, JobRecord, Lane, Role
from millrace.gateway.settings import GatewaySettings
from millrace.submission import FIELDS
from millrace_schemas import JobState
from millrace_schemas.job import MAX_IDEMPOTENCY_KEY, MAX_MESSAGES

from . import answers, fields
from .json_schema import (
    BOOLEAN,
    NULL,
    STRING,
    Json,
    array,
    body,
    closed,
    constant,
    described,
    one_of,
    ref,
    structs,
)
from .operation import BASE, Operation, events, parameter, sending
from .sampling import sampling_schema

#: Of every job, whatever it is made of; by the names of `submit`'s arguments.
_COMMON: Mapping[str, Json] = {
    "model": described(fields.MODEL, "A registered model; not needed where there is one only."),
    "sampling": ref("Sampling"),
    "lane": {"enum": list(Lane), "default": Lane.INTERACTIVE, "description": "`batch` gives way to `interactive`."},
    "result_to": {
        "type": "string",
        "pattern": r"^(redis|s3://[^/]+(/[\s\S]*)?)$",
        "default": "redis",
        "description": '"redis", or "s3://bucket/prefix": the result becomes an object there.',
    },
    "deadline": {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 100_000_000_000,
        "description": "Unix seconds after which the job is not worth running; it then ends as `expired`.",
    },
    "stream": described(BOOLEAN, "Publish tokens while they are made, for the job's events."),
    "metadata": fields.METADATA,
    "webhook": fields.WEBHOOK,
    "cache_salt": fields.CACHE_SALT,
    "cache": fields.CACHE,
    "cache_ttl": fields.CACHE_TTL,
    "idempotency_key": {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_IDEMPOTENCY_KEY,
        "description": "Goes before the header, and is that of one job in an array.",
    },
}
_INPUTS: Mapping[str, Json] = {
    "prompt": described(fields.TEXT, "Completed as it is; with `system`, the user's message of a chat."),
    "system": described(STRING, "The system's message; goes with `prompt`."),
    "messages": array(
        ref("Message"),
        minItems=1,
        maxItems=MAX_MESSAGES,
        contains={"properties": {"content": {"minLength": 1}}},
        description="A conversation for the model's chat template; one message, at least, is not empty.",
    ),
    "prompt_token_ids": fields.TOKEN_IDS,
}


def _made_of(*names: str) -> Json:
    """A job whose input is the first of these; the others may join it, and all that are not named are absent."""
    known = {*FIELDS, "idempotency_key"}
    inputs = {name: schema if name in names else NULL for name, schema in _INPUTS.items()}
    properties = {name: it for name, it in {**inputs, **_COMMON}.items() if name in known}
    return body(properties, required=names[:1], allOf=[fields.TTL_NEEDS_PIN])


def _described_job(record: Json) -> Json:
    properties = {
        **record["properties"],
        "state": ref("JobState"),
        "object": constant("job"),
        "result": {"anyOf": [ref("Result"), NULL], "description": "null until the job has ended."},
    }
    return closed(properties, description="A job as it is now; times are Unix seconds.")


_STRUCTS = structs(JobRecord, JobState, Event, Role)
_RECORD = _STRUCTS.pop("JobRecord")
# Written without its defaults.
_STRUCTS["ErrorInfo"]["required"] = ["code", "message"]
for _name in ("Choice", "Tokens"):
    _STRUCTS[_name]["required"].remove("logprobs")

SCHEMAS: Mapping[str, Json] = {
    "Sampling": sampling_schema(),
    "Message": closed({"role": ref("Role"), "content": STRING}),
    "PromptJob": _made_of("prompt", "system"),
    "MessagesJob": _made_of("messages"),
    "TokensJob": _made_of("prompt_token_ids"),
    "JobRequest": one_of(
        ref("PromptJob"), ref("MessagesJob"), ref("TokensJob"), description="What the job is made of."
    ),
    **_STRUCTS,
    "JobId": closed({"id": STRING, "object": constant("job")}),
    "JobList": closed({"object": constant("list"), "data": array(ref("JobId"))}),
    "Job": _described_job(_RECORD),
    "CancelledJob": closed(
        {"id": STRING, "object": constant("job"), "state": ref("JobState"), "cancel_requested": BOOLEAN}
    ),
    "JobEvent": one_of(*(ref(name) for name in ("Started", "Tokens", "Finished"))),
}

_ID = "demo-01m80b0nqp2f3fqpz0b4j6qfd0"
_QUESTION = {
    "system": "Change the words by the rule.",
    "prompt": "Uppercase every word: quiet river",
    "stream": True,
    "sampling": {"max_tokens": 16, "temperature": 0},
}
_RECORD_EXAMPLE = {
    "id": _ID, "state": "completed", "attempts": 1, "created_at": 1795307886.327846,
    "started_at": 1795307886.328663, "finished_at": 1795307886.433357, "worker": "vm-19863-e6beefd0",
    "cancel_requested": False, "tenant": "", "webhook": None, "pin": None, "pin_problem": None, "object": "job",
    "result": {
        "id": _ID, "model": "demo", "state": "completed",
        "choices": [
            {"index": 0, "text": "QUIET RIVER", "token_ids": [909, 45, 949, 225, 959, 933, 1], "finish_reason": "stop"}
        ],
        "error": None, "usage": {"prompt_tokens": 30, "completion_tokens": 7, "cached_tokens": 0},
        "timings": {"queued": 0.0008, "ttft": 0.0399, "total": 0.1046}, "attempts": 1, "worker": "vm-19863-e6beefd0",
        "metadata": {}, "location": None,
    },
}  # fmt: skip
#: Makes a job and keeps its id.
_SETUP = f"""JOB=$(curl -s {BASE}/v1/jobs{sending(_QUESTION)} \\
  | sed 's/.*"id":"\\([^"]*\\)".*/\\1/')
"""


def _links() -> dict[str, Json]:
    ids = {"ReadJob": "readJob", "CancelJob": "cancelJob", "JobEvents": "readJobEvents"}
    return {name: {"operationId": id_, "parameters": {"id": "$response.body#/id"}} for name, id_ in ids.items()}


def operations(settings: GatewaySettings) -> tuple[Operation, ...]:
    """With the limits of this gateway."""
    return _create(settings), _read(settings), _CANCEL, _EVENTS


def _create(settings: GatewaySettings) -> Operation:
    many = array(ref("JobRequest"), minItems=1, maxItems=settings.max_jobs)
    example = {"id": _ID, "object": "job"}
    accepted = answers.json_answer("The id, or the ids in order.", one_of(ref("JobId"), ref("JobList")), example)
    return Operation(
        method="post",
        path="/v1/jobs",
        id="createJobs",
        tag="Jobs",
        summary="Queue one job, or many",
        description="All jobs of an array are checked before the first is queued. "
        "A job lives on whatever becomes of the connection that made it.",
        parameters=(fields.IDEMPOTENCY_KEY,),
        body={"schema": one_of(ref("JobRequest"), many), "example": _QUESTION},
        answers={202: {**answers.submitted(accepted, location="Location"), "links": _links()}},
        errors=answers.OF_A_JOB,
    )


def _read(settings: GatewaySettings) -> Operation:
    wait: Json = {"type": "number", "minimum": 0, "maximum": settings.max_wait, "default": 0}
    return Operation(
        method="get",
        path="/v1/jobs/{id}",
        id="readJob",
        tag="Jobs",
        summary="Read a job, or wait for its end",
        description="A job that ended without an answer is a 200 too: look at `state`, and at `result.error`.",
        parameters=(fields.JOB_ID, parameter("wait", "query", "Seconds to wait for the job's end.", wait)),
        answers={200: answers.json_answer("The job as it is now.", ref("Job"), _RECORD_EXAMPLE)},
        errors=(400, 404, 500, 502, 503),
        setup=_SETUP,
        target="/v1/jobs/$JOB?wait=30",
    )


_CANCEL = Operation(
    method="delete",
    path="/v1/jobs/{id}",
    id="cancelJob",
    tag="Jobs",
    summary="Cancel a job",
    description="`state` is `cancelled` when the job had not begun, `in_progress` when its worker was told, and the "
    "end that the job had when it was too late.",
    parameters=(fields.JOB_ID,),
    answers={
        200: answers.json_answer(
            "The state after it.",
            ref("CancelledJob"),
            {"id": _ID, "object": "job", "state": "in_progress", "cancel_requested": True},
        )
    },
    errors=(400, 404, 500, 503),
    setup=_SETUP,
    target="/v1/jobs/$JOB",
)
_EVENTS = Operation(
    method="get",
    path="/v1/jobs/{id}/events",
    id="readJobEvents",
    tag="Jobs",
    summary="Follow a job's events",
    description="Of a job with `stream`. Events are stored: a reader that comes late starts at the first one. The "
    "stream ends with `finished`.",
    parameters=(
        fields.JOB_ID,
        parameter(
            "Last-Event-ID",
            "header",
            "Go on behind the event with this id, as browsers do by themselves.",
            {"type": "string", "pattern": "^[0-9]{1,19}-[0-9]{1,19}$"},
            "1795307886404-0",
        ),
    ),
    answers={
        200: {"description": "Events.", "content": events(ref("JobEvent"), ref("Error"), description="One event.")}
    },
    errors=(400, 404, 500, 502, 503),
    setup=_SETUP,
    target="/v1/jobs/$JOB/events",
)
