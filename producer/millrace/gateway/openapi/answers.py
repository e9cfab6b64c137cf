"""How requests end: the errors by their status, headers of answers, and the bodies that all parts share."""

from __future__ import annotations

from collections.abc import Mapping

from .json_schema import STRING, Json, array, closed, described, or_null, ref

SCHEMAS: Mapping[str, Json] = {
    "Error": closed(
        {
            "error": closed(
                {
                    "message": described(STRING, "What is wrong and what to do."),
                    "type": described(STRING, "`server_error` for 5xx; otherwise mostly `invalid_request_error`."),
                    "param": described(or_null(STRING), "The parameter or header at fault, dotted."),
                    "code": described(or_null(STRING), "A stable name that programs may compare."),
                    "submitted": described(array(STRING), "Of `partly_submitted` alone: ids of jobs that are queued."),
                    "unsure": described(array(STRING), "Of `partly_submitted` alone: ids of jobs that may be."),
                },
                optional=("submitted", "unsure"),
            )
        },
        description="The shape of every error.",
    ),
}

HEADERS: Mapping[str, Json] = {
    "RequestId": {"description": "The id of the job.", "schema": STRING},
    "RetryAfter": {"description": "Seconds after which it is worth asking again.", "schema": {"type": "string"}},
    "RetryAfterMs": {"description": "The same in milliseconds.", "schema": {"type": "string"}},
    "Rate": {
        "description": "Of a key with limits: its allowance of a minute, what is left, or when all is back.",
        "schema": STRING,
    },
    "ShouldRetry": {
        "description": "`false` keeps OpenAI's clients from a repeat that cannot help.",
        "schema": {"type": "string", "const": "false"},
    },
    "Location": {"description": "Where the job can be read.", "schema": {"type": "string", "format": "uri-reference"}},
    "Authenticate": {"description": "How a key is sent.", "schema": STRING},
    "Allow": {"description": "The methods that this URL takes.", "schema": STRING},
}

#: Of whatever counted against a key's limits.
RATES = tuple(
    (f"x-ratelimit-{what}-{name}", "Rate")
    for name in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)

#: What each status means, with its codes.
_MEANINGS: Mapping[int, str] = {
    400: "The request is wrong: `param` names what. `invalid_request`, `invalid_json`, `unsupported_parameter`, "
    "`unknown_parameter`, `context_length_exceeded`, `job_too_large`, `no_chat_template`, ...",
    401: "`invalid_api_key`: the gateway requires a key, and there is none, or none that lives.",
    403: "`host_not_allowed`: the gateway does not answer for the name in the Host header. "
    "`operator_key_required`: the key is no operator's.",
    404: "There is no such thing, or its time to live is over: `model_not_found`, `job_not_found`, "
    "`response_not_found`, `file_not_found`, `batch_not_found`, `unknown_url`. `files_not_configured`: this gateway "
    "keeps no files.",
    405: "`method_not_allowed`.",
    408: "`request_timeout`: the body did not arrive in time.",
    409: "`cancelled`: somebody cancelled the job that this request waits for.",
    413: "`request_too_large`.",
    415: "`unsupported_media_type`: the body must be application/json, a file multipart/form-data.",
    429: "`rate_limit_exceeded`, with the type `requests` or `tokens`: the key's rate is at its limit. "
    "`too_many_jobs`: the tenant's number of unfinished jobs is.",
    500: "The job failed (`engine_failed`, `too_many_attempts`, `undecodable`, ...), or the gateway did (`internal`).",
    502: "`result_unavailable`: the result is in S3 and cannot be read from there.",
    503: "For now: `queue_unavailable`, `no_live_worker`, `too_many_streams`, `storage_unavailable`. "
    "Not for a repeat: `partly_submitted`.",
    504: "`result_timeout`: no answer in time. `deadline_exceeded`: the job's deadline passed first.",
    507: "`insufficient_storage`: the gateway has no room for the file while it arrives.",
}
_HEADERS_OF: Mapping[int, tuple[tuple[str, str], ...]] = {
    401: (("www-authenticate", "Authenticate"),),
    405: (("allow", "Allow"),),
    429: (
        ("retry-after", "RetryAfter"),
        ("retry-after-ms", "RetryAfterMs"),
        ("x-should-retry", "ShouldRetry"),
        *RATES,
    ),
    500: (("x-should-retry", "ShouldRetry"),),
    503: (("retry-after", "RetryAfter"), ("x-should-retry", "ShouldRetry")),
    504: (("x-should-retry", "ShouldRetry"),),
    507: (("x-should-retry", "ShouldRetry"),),
}

#: A body may be missing, late, long or wrong.
OF_A_BODY = (400, 408, 413, 415)
#: And there may be no model for a job, or too many jobs.
OF_A_JOB = (*OF_A_BODY, 404, 429, 500, 503)


def responses() -> dict[str, Json]:
    """The errors, as components."""
    return {_name(status): _response(status) for status in _MEANINGS}


def error(status: int) -> Json:
    return {"$ref": f"#/components/responses/{_name(status)}"}


def header(name: str) -> Json:
    return {"$ref": f"#/components/headers/{name}"}


def submitted(answer: Json, **headers: str) -> Json:
    """`answer` to what made jobs, with these headers and what is left of a key's allowances."""
    named = {name.replace("_", "-"): header(component) for name, component in headers.items()}
    return {**answer, "headers": named | {name: header(component) for name, component in RATES}}


def json_answer(description: str, schema: Json, example: object = None) -> Json:
    content: Json = {"schema": schema}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {"application/json": content}}


def _name(status: int) -> str:
    return f"Error{status}"


def _response(status: int) -> Json:
    found = json_answer(_MEANINGS[status], ref("Error"))
    if status in _HEADERS_OF:
        found["headers"] = {name: header(component) for name, component in _HEADERS_OF[status]}
    return found
