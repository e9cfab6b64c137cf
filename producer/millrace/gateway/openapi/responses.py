"""/v1/responses, as the document describes them."""

from __future__ import annotations

from collections.abc import Mapping

from millrace.openai_api import responses_body
from millrace.openai_api.params import SAMPLING
from millrace_schemas.job import MAX_MESSAGES, MAX_METADATA_PAIRS
from millrace_schemas.sampling import MAX_LOGPROBS

from . import answers, fields
from .json_schema import (
    BOOLEAN,
    INTEGER,
    NULL,
    NUMBER,
    STRING,
    Json,
    array,
    body,
    closed,
    constant,
    described,
    one_of,
    or_null,
    ref,
    refused,
)
from .operation import BASE, Operation, events, parameter, sending
from .sampling import openai_sampling

#: What is kept in a pair of the job's metadata.
_MARKED: Json = {
    "anyOf": [
        {"properties": {"instructions": STRING}, "required": ["instructions"]},
        {"properties": {"webhook": STRING}, "required": ["webhook"]},
        {"properties": {"background": {"const": True}}, "required": ["background"]},
    ]
}
_TAKEN: Mapping[str, Json] = {
    "input": one_of(
        fields.TEXT,
        array(ref("ResponseMessage"), minItems=1, maxItems=MAX_MESSAGES, contains=fields.NOT_EMPTY),
        description="Text, or messages of text, one of which, at least, is not empty.",
    ),
    "instructions": described(STRING, "The system's message, before all others."),
    "background": described(BOOLEAN, "Answer at once; the response is asked after later."),
    "store": described(BOOLEAN, "Changes nothing: a result is kept for its time to live."),
    **fields.COMMON,
    "metadata": {
        **fields.METADATA,
        "propertyNames": {**fields.METADATA["propertyNames"], "not": {"const": responses_body.MARK}},
        "description": "Kept and repeated; one pair less with `background`, `instructions` or `webhook`.",
    },
    "max_output_tokens": openai_sampling(["max_tokens"])["max_tokens"],
    **openai_sampling(SAMPLING),
    "include": array(
        constant(responses_body.LOGPROBS), description="Report the log-probability of each token of the answer."
    ),
    "top_logprobs": {
        "type": "integer",
        "minimum": 0,
        "maximum": MAX_LOGPROBS,
        "description": "With `include`, also those of so many likeliest tokens at each place.",
    },
    "text": closed(refused(responses_body.REFUSED_TEXT), optional=responses_body.REFUSED_TEXT),
    "reasoning": closed(refused(responses_body.REFUSED_REASONING), optional=responses_body.REFUSED_REASONING),
}
_STATUS = constant("queued", "in_progress", "completed", "incomplete", "failed", "cancelled")
_TEXT_PART = closed(
    {
        "type": constant("output_text"),
        "text": STRING,
        "annotations": array(STRING, maxItems=0),
        "logprobs": array(ref("ResponseLogprob")),
    }
)
_ITEM = closed(
    {
        "id": STRING,
        "type": constant("message"),
        "role": constant("assistant"),
        "status": constant("in_progress", "completed", "incomplete"),
        "content": array(ref("OutputText")),
    }
)
_USAGE = closed(
    {
        "input_tokens": INTEGER,
        "input_tokens_details": closed(
            {"cached_tokens": INTEGER, **fields.CACHED_BY_TIER, "cache_write_tokens": INTEGER},
            optional=fields.CACHED_BY_TIER,
        ),
        "output_tokens": INTEGER,
        "output_tokens_details": closed({"reasoning_tokens": INTEGER}),
        "total_tokens": INTEGER,
    }
)
_RESPONSE = closed(
    {
        "id": STRING,
        "object": constant("response"),
        "created_at": described(INTEGER, "Unix seconds."),
        "status": _STATUS,
        "background": BOOLEAN,
        "completed_at": or_null(INTEGER),
        "error": or_null(closed({"code": constant("server_error", "invalid_prompt"), "message": STRING})),
        "incomplete_details": or_null(closed({"reason": constant("max_output_tokens")})),
        "instructions": or_null(STRING),
        "max_output_tokens": or_null(INTEGER),
        "metadata": {"type": "object", "additionalProperties": STRING},
        "model": STRING,
        "output": array(ref("OutputMessage"), maxItems=1),
        "parallel_tool_calls": constant(True),
        "previous_response_id": NULL,
        "reasoning": closed({"effort": NULL, "summary": NULL}),
        "temperature": NUMBER,
        "text": closed({"format": closed({"type": constant("text")})}),
        "tool_choice": constant("auto"),
        "tools": array(STRING, maxItems=0),
        "top_logprobs": INTEGER,
        "top_p": NUMBER,
        "truncation": constant("disabled"),
        "usage": {"anyOf": [ref("ResponseUsage"), NULL]},
    }
)
_CHANCE: Mapping[str, Json] = {"token": STRING, "logprob": NUMBER}
_TOLD_LOGPROB = closed({**_CHANCE, "top_logprobs": array(closed(_CHANCE))})
_CHANCE_BYTES: Mapping[str, Json] = {**_CHANCE, "bytes": array(INTEGER)}
_PLACE = {"item_id": STRING, "output_index": constant(0), "content_index": constant(0)}
_WHOLE = {"response": ref("Response")}
_TOLD: Mapping[tuple[str, ...], Mapping[str, Json]] = {
    (
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ): _WHOLE,
    ("response.output_item.added", "response.output_item.done"): {
        "output_index": constant(0),
        "item": ref("OutputMessage"),
    },
    ("response.content_part.added", "response.content_part.done"): {**_PLACE, "part": ref("OutputText")},
    ("response.output_text.delta",): {**_PLACE, "delta": STRING, "logprobs": array(_TOLD_LOGPROB)},
    ("response.output_text.done",): {**_PLACE, "text": STRING, "logprobs": array(_TOLD_LOGPROB)},
    ("error",): {"code": or_null(STRING), "message": STRING, "param": or_null(STRING)},
}

SCHEMAS: Mapping[str, Json] = {
    "ResponseMessage": closed(
        {
            "type": constant("message"),
            "role": constant(*responses_body.ROLES),
            "content": fields.text_parts(*responses_body.PARTS),
            **{name: described({}, "Of an earlier answer; not used.") for name in ("id", "status", "phase")},
        },
        optional=("type", "id", "status", "phase"),
    ),
    "ResponseRequest": body(
        {
            **{name: schema for name, schema in _TAKEN.items() if name in responses_body.KNOWN},
            **refused(responses_body.REFUSED),
        },
        required=("model", "input"),
        anyOf=[
            {"properties": {"top_logprobs": {"enum": [0, None]}}},
            {"properties": {"include": {"type": "array", "minItems": 1}}, "required": ["include"]},
        ],
        allOf=[fields.TTL_NEEDS_PIN],
        **{"if": _MARKED, "then": {"properties": {"metadata": {"maxProperties": MAX_METADATA_PAIRS - 1}}}},
    ),
    "OutputText": _TEXT_PART,
    "ResponseLogprob": closed({**_CHANCE_BYTES, "top_logprobs": array(closed(_CHANCE_BYTES))}),
    "OutputMessage": _ITEM,
    "ResponseUsage": _USAGE,
    "Response": _RESPONSE,
    "ResponseEvent": one_of(
        *(
            closed({"type": constant(*kinds), **more, "sequence_number": {"type": "integer", "minimum": 0}})
            for kinds, more in _TOLD.items()
        )
    ),
}

_ID = "resp_demo-01m80b0nqp2f3fqpz0b4j6qfd0"
_QUESTION = {
    "model": "demo",
    "instructions": "Change the words by the rule.",
    "input": "Uppercase every word: quiet river",
    "max_output_tokens": 16,
    "temperature": 0,
}
_ANSWER = {
    "id": _ID, "object": "response", "created_at": 1795307886, "status": "completed", "background": False,
    "completed_at": 1795307886, "error": None, "incomplete_details": None,
    "instructions": "Change the words by the rule.", "max_output_tokens": 16, "metadata": {}, "model": "demo",
    "output": [
        {
            "id": "msg_demo-01m80b0nqp2f3fqpz0b4j6qfd0", "type": "message", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "QUIET RIVER", "annotations": [], "logprobs": []}],
        }
    ],
    "parallel_tool_calls": True, "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
    "temperature": 0.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_logprobs": 0,
    "top_p": 1.0, "truncation": "disabled",
    "usage": {
        "input_tokens": 30, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 37,
    },
}  # fmt: skip
_SETUP = f"""RESPONSE=$(curl -s {BASE}/v1/responses{sending({**_QUESTION, "background": True})} \\
  | sed 's/^{{"id":"\\([^"]*\\)".*/\\1/')
"""
_LINKS = {
    name: {"operationId": id_, "parameters": {"id": "$response.body#/id"}}
    for name, id_ in (("RetrieveResponse", "retrieveResponse"), ("CancelResponse", "cancelResponse"))
}
_EVENTS = events(ref("ResponseEvent"), description="One event, typed and numbered as OpenAI's are.")


def _with_events(description: str) -> Json:
    found = answers.json_answer(description, ref("Response"), _ANSWER)
    found["content"] |= _EVENTS
    return found


OPERATIONS = (
    Operation(
        method="post",
        path="/v1/responses",
        id="createResponse",
        tag="Responses",
        summary="Create a response",
        description="Waits for the answer, streams it, or leaves it to the background. When the client leaves, the "
        "response ends, unless it has `background` or the request an Idempotency-Key.",
        parameters=(fields.IDEMPOTENCY_KEY,),
        body={"schema": ref("ResponseRequest"), "example": _QUESTION},
        answers={
            200: {
                **answers.submitted(
                    _with_events("The Response, whole or as far as it is; with `stream` its events."),
                    x_request_id="RequestId",
                ),
                "links": _LINKS,
            }
        },
        errors=(*answers.OF_A_JOB, 409, 502, 504),
    ),
    Operation(
        method="get",
        path="/v1/responses/{id}",
        id="retrieveResponse",
        tag="Responses",
        summary="Retrieve a response, or its events",
        parameters=(
            fields.RESPONSE_ID,
            parameter(
                "stream", "query", "Its events, of a response that was made with `stream`.",
                {"type": "boolean", "default": False},
            ),
            parameter(
                "starting_after", "query", "Only events behind this `sequence_number`; goes with `stream=true` alone.",
                {"type": "integer", "minimum": 0, "maximum": 10**15 - 1},
            ),
            parameter("include_obfuscation", "query", "Only what happens here.", constant(False)),
        ),
        answers={200: _with_events("The Response as it is now.")},
        errors=(400, 404, 500, 502, 503),
        setup=_SETUP,
        target="/v1/responses/$RESPONSE",
    ),
    Operation(
        method="delete",
        path="/v1/responses/{id}",
        id="deleteResponse",
        tag="Responses",
        summary="Delete a response: not possible",
        description="Each response goes when its time to live is over, and in no other way: always 405.",
        parameters=(fields.RESPONSE_ID,),
        errors=(405,),
        setup=_SETUP,
        target="/v1/responses/$RESPONSE",
    ),
    Operation(
        method="post",
        path="/v1/responses/{id}/cancel",
        id="cancelResponse",
        tag="Responses",
        summary="Cancel a response in the background",
        description="Again and again gives the same Response. It is `in_progress` when its worker has been told but "
        "has not ended it yet.",
        parameters=(fields.RESPONSE_ID,),
        answers={200: answers.json_answer("The Response after it.", ref("Response"), _ANSWER)},
        errors=(400, 404, 500, 502, 503),
        setup=_SETUP,
        target="/v1/responses/$RESPONSE/cancel",
    ),
)  # fmt: skip
