"""/v1/batches, as the document describes them."""

from __future__ import annotations

from collections.abc import Mapping

from millrace.bulk.expiry import ANCHOR
from millrace.bulk.rows import ENDPOINTS
from millrace.gateway.batch_events import ENDS, PROGRESS
from millrace.gateway.batches import MAX_LISTED
from millrace_schemas.batch import BatchStatus

from . import answers, fields
from .files import SECONDS, SETUP, TAKE_ID, listed
from .json_schema import INTEGER, STRING, Json, array, body, closed, constant, described, or_null, ref
from .operation import BASE, Operation, events, parameter

_TIME = or_null(INTEGER)
_TIMES = (
    "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at",
)  # fmt: skip
_BATCH: Mapping[str, Json] = {
    "id": STRING,
    "object": constant("batch"),
    "endpoint": STRING,
    "model": described(or_null(STRING), "That of all lines; null until they were looked through."),
    "errors": or_null(
        closed(
            {
                "object": constant("list"),
                "data": array(
                    closed({"code": STRING, "message": STRING, "line": or_null(INTEGER), "param": or_null(STRING)})
                ),
            }
        )
    ),
    "input_file_id": STRING,
    "completion_window": STRING,
    "status": constant(*(str(status) for status in BatchStatus)),
    "output_file_id": or_null(STRING),
    "error_file_id": or_null(STRING),
    "created_at": INTEGER,
    "expires_at": INTEGER,
    **dict.fromkeys(_TIMES, _TIME),
    "request_counts": closed(dict.fromkeys(("total", "completed", "failed"), INTEGER)),
    "usage": closed(
        {
            "input_tokens": INTEGER,
            "input_tokens_details": closed({"cached_tokens": INTEGER}),
            "output_tokens": INTEGER,
            "output_tokens_details": closed({"reasoning_tokens": INTEGER}),
            "total_tokens": INTEGER,
        }
    ),
    "metadata": or_null({"type": "object", "additionalProperties": STRING}),
    "problem": described(or_null(STRING), "Why it does not move; OpenAI has no such field."),
}
SCHEMAS: Mapping[str, Json] = {
    "Batch": closed(_BATCH),
    "BatchEvent": closed({**_BATCH, "progress": ref("Glance")}, description="The batch, and how fast it moves."),
    "BatchList": listed("Batch"),
    "BatchRequest": body(
        {
            "input_file_id": STRING,
            "endpoint": constant(*ENDPOINTS),
            "completion_window": {
                "type": "string",
                "pattern": "^[1-9][0-9]{0,6}[smhd]$",
                "description": "Until it expires; at most seven days.",
            },
            "metadata": fields.METADATA,
            "output_expires_after": closed({"anchor": constant(ANCHOR), "seconds": SECONDS}),
            "webhook": described(
                fields.WEBHOOK, "A URL that a gateway calls when the batch has ended; OpenAI has no such field."
            ),
        },
        required=("input_file_id", "endpoint", "completion_window"),
    ),
}

_ASKED = {
    "input_file_id": "file-00112233445566778899aabbccddeeff",
    "endpoint": ENDPOINTS[0],
    "completion_window": "24h",
}
_EXAMPLE = {
    "id": "batch_00112233445566778899aabbccddeeff", "object": "batch", "endpoint": ENDPOINTS[0], "model": None,
    "errors": None, "input_file_id": _ASKED["input_file_id"], "completion_window": "24h", "status": "validating",
    "output_file_id": None, "error_file_id": None, "created_at": 1795000000, "expires_at": 1795086400,
    **dict.fromkeys(_TIMES), "request_counts": {"total": 0, "completed": 0, "failed": 0},
    "usage": {
        "input_tokens": 0, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 0,
    },
    "metadata": None, "problem": None,
}  # fmt: skip
_ID = parameter("id", "path", "Of a batch.", STRING)
_SENDS = (
    ' -H \'content-type: application/json\' -d "{\\"input_file_id\\": \\"$FILE\\", '
    f'\\"endpoint\\": \\"{ENDPOINTS[0]}\\", \\"completion_window\\": \\"24h\\"}}"'
)
_SETUP = f"{SETUP}BATCH=$(curl -s {BASE}/v1/batches{_SENDS} | {TAKE_ID})\n"

OPERATIONS = (
    Operation(
        method="post",
        path="/v1/batches",
        id="createBatch",
        tag="Batches",
        summary="Have a file of requests answered",
        parameters=(fields.IDEMPOTENCY_KEY,),
        body={"schema": ref("BatchRequest"), "example": _ASKED},
        sends=_SENDS,
        answers={200: answers.json_answer("The batch.", ref("Batch"), _EXAMPLE)},
        errors=(*answers.OF_A_BODY, 404, 500, 503),
        setup=SETUP,
    ),
    Operation(
        method="get",
        path="/v1/batches",
        id="listBatches",
        tag="Batches",
        summary="List batches, newest first",
        parameters=(
            parameter("limit", "query", "At most.", {"type": "integer", "minimum": 1, "maximum": MAX_LISTED}),
            parameter("after", "query", "Those behind the batch with this id.", STRING),
        ),
        answers={200: answers.json_answer("Batches.", ref("BatchList"))},
        errors=(400, 404, 500, 503),
    ),
    Operation(
        method="get",
        path="/v1/batches/{id}",
        id="retrieveBatch",
        tag="Batches",
        summary="Read a batch",
        parameters=(_ID,),
        answers={200: answers.json_answer("The batch.", ref("Batch"), _EXAMPLE)},
        errors=(404, 500, 503),
        setup=_SETUP,
        target="/v1/batches/$BATCH",
    ),
    Operation(
        method="get",
        path="/v1/batches/{id}/events",
        id="readBatchEvents",
        tag="Batches",
        summary="Follow a batch's progress",
        description=f"Events are named `{PROGRESS}`, at most two a second and only when something has changed; the "
        "first one is the batch as it is. The stream ends with "
        + ", ".join(f"`{name}`" for name in ENDS[:-1])
        + f" or `{ENDS[-1]}`.",
        parameters=(
            _ID,
            parameter(
                "Last-Event-ID",
                "header",
                "The last event that was seen, as browsers send it by themselves: it is not sent again.",
                STRING,
                "5ce2c35c4b1e7a90",
            ),
        ),
        answers={
            200: {
                "description": "Events.",
                "content": events(ref("BatchEvent"), ref("Error"), description="One event."),
            },
            204: {"description": "The batch has ended, and `Last-Event-ID` is that of its end."},
        },
        errors=(404, 500, 503),
        setup=_SETUP,
        target="/v1/batches/$BATCH/events",
    ),
    Operation(
        method="post",
        path="/v1/batches/{id}/cancel",
        id="cancelBatch",
        tag="Batches",
        summary="End a batch",
        description="Lines without an answer get an error; the others stay.",
        parameters=(_ID,),
        answers={200: answers.json_answer("The batch.", ref("Batch"), _EXAMPLE)},
        errors=(404, 500, 503),
        setup=_SETUP,
        target="/v1/batches/$BATCH/cancel",
    ),
)
