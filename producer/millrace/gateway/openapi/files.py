"""/v1/files, as the document describes them."""

from __future__ import annotations

from collections.abc import Mapping

from millrace.bulk.expiry import ANCHOR, MAX_SECONDS, MIN_SECONDS
from millrace.gateway.files import EXPIRES, MAX_LISTED, PURPOSE, PURPOSES

from . import answers
from .json_schema import BOOLEAN, INTEGER, STRING, Json, array, closed, constant, described, or_null, ref
from .operation import BASE, Operation, parameter

#: Until a file goes.
SECONDS: Json = {
    "type": "integer",
    "minimum": MIN_SECONDS,
    "maximum": MAX_SECONDS,
    "description": "After the file was made it goes; otherwise it stays until it is deleted.",
}
_EXPIRES = (f"{EXPIRES}[anchor]", f"{EXPIRES}[seconds]")


def listed(of: str) -> Json:
    """A page of a list."""
    return closed(
        {
            "object": constant("list"),
            "data": array(ref(of)),
            "first_id": or_null(STRING),
            "last_id": or_null(STRING),
            "has_more": BOOLEAN,
        }
    )


SCHEMAS: Mapping[str, Json] = {
    "File": closed(
        {
            "id": STRING,
            "object": constant("file"),
            "bytes": INTEGER,
            "created_at": INTEGER,
            "filename": STRING,
            "purpose": constant(*PURPOSES),
            "status": constant("processed"),
            "expires_at": described(or_null(INTEGER), "When it goes; null: it stays until it is deleted."),
        }
    ),
    "FileList": listed("File"),
    "FileDeleted": closed({"id": STRING, "object": constant("file"), "deleted": constant(True)}),
    "FileUpload": closed(
        {
            "file": {"type": "string", "format": "binary", "description": "Lines of requests, as OpenAI's batches."},
            "purpose": constant(PURPOSE),
            f"{EXPIRES}[anchor]": constant(ANCHOR),
            f"{EXPIRES}[seconds]": SECONDS,
        },
        optional=_EXPIRES,
        dependentRequired=dict(zip(_EXPIRES, ([name] for name in reversed(_EXPIRES)), strict=True)),
    ),
}

_EXAMPLE = {
    "id": "file-00112233445566778899aabbccddeeff", "object": "file", "bytes": 120, "created_at": 1795000000,
    "filename": "requests.jsonl", "purpose": PURPOSE, "status": "processed", "expires_at": None,
}  # fmt: skip
_ID = parameter("id", "path", "Of a file.", STRING)
#: One line, and the id of a file of it in FILE.
LINE = (
    '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "demo", "max_tokens": 8, '
    '"messages": [{"role": "user", "content": "hi"}]}}'
)
PIPE = f"echo '{LINE}' | "
SENDS = " -F purpose=batch -F 'file=@-;filename=requests.jsonl'"
TAKE_ID = "python3 -c 'import json, sys; print(json.load(sys.stdin)[\"id\"])'"
SETUP = f"FILE=$({PIPE}curl -s {BASE}/v1/files{SENDS} | {TAKE_ID})\n"

OPERATIONS = (
    Operation(
        method="post",
        path="/v1/files",
        id="createFile",
        tag="Files",
        summary="Send a file for a batch",
        body={"schema": ref("FileUpload")},
        body_type="multipart/form-data",
        sends=SENDS,
        answers={200: answers.json_answer("The file.", ref("File"), _EXAMPLE)},
        errors=(*answers.OF_A_BODY, 404, 500, 503, 507),
        setup=PIPE,
    ),
    Operation(
        method="get",
        path="/v1/files",
        id="listFiles",
        tag="Files",
        summary="List files",
        parameters=(
            parameter("purpose", "query", "Of no other.", STRING),
            parameter("limit", "query", "At most.", {"type": "integer", "minimum": 1, "maximum": MAX_LISTED}),
            parameter("order", "query", "By the time at which they were made.", constant("asc", "desc")),
            parameter("after", "query", "Those behind the file with this id.", STRING),
        ),
        answers={200: answers.json_answer("Files.", ref("FileList"))},
        errors=(400, 404, 500, 503),
    ),
    Operation(
        method="get",
        path="/v1/files/{id}",
        id="retrieveFile",
        tag="Files",
        summary="Read about a file",
        parameters=(_ID,),
        answers={200: answers.json_answer("The file.", ref("File"), _EXAMPLE)},
        errors=(404, 500, 503),
        setup=SETUP,
        target="/v1/files/$FILE",
    ),
    Operation(
        method="delete",
        path="/v1/files/{id}",
        id="deleteFile",
        tag="Files",
        summary="Delete a file",
        parameters=(_ID,),
        answers={200: answers.json_answer("It is gone.", ref("FileDeleted"))},
        errors=(404, 500, 503),
        setup=SETUP,
        target="/v1/files/$FILE",
    ),
    Operation(
        method="get",
        path="/v1/files/{id}/content",
        id="readFile",
        tag="Files",
        summary="Read a file",
        parameters=(_ID,),
        answers={
            200: {
                "description": "Its bytes.",
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
        errors=(404, 500, 503),
        setup=SETUP,
        target="/v1/files/$FILE/content",
    ),
)
