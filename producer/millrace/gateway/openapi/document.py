"""The OpenAPI document of the gateway, joined from its parts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import msgspec

from millrace.gateway.settings import GatewaySettings

from . import answers, batches, completions, files, jobs, models, responses, service
from .json_schema import Json
from .operation import Operation

_PARTS = (answers, completions, responses, models, jobs, files, batches, service)
_DESCRIPTION = (
    "Generation jobs over a queue in Redis, in OpenAI's shapes and in Millrace's own. "
    "HEAD is taken wherever GET is; another method is a 405, another path a 404. "
    "null says no more than leaving a parameter out, unless something else is written."
)
_TAGS = {
    "Completions": "OpenAI's, whole or as a stream.",
    "Responses": "OpenAI's: waited for, streamed, or in the background.",
    "Models": "What workers have registered.",
    "Jobs": "The queue itself.",
    "Files": "What batches read and write.",
    "Batches": "OpenAI's: a file of requests, answered into a file.",
    "Service": "The gateway: health, numbers, pages.",
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, `mk_...`."},
    "basic": {"type": "http", "scheme": "basic", "description": "An API key as the password; the user's name is free."},
}


def operations(settings: GatewaySettings) -> tuple[Operation, ...]:
    """All, in the order of the document."""
    return (
        *completions.OPERATIONS,
        *responses.OPERATIONS,
        *models.OPERATIONS,
        *jobs.operations(settings),
        *files.OPERATIONS,
        *batches.OPERATIONS,
        *service.OPERATIONS,
    )


def build_document(settings: GatewaySettings) -> Json:
    """What a gateway with these limits takes and answers."""
    paths: dict[str, Json] = {}
    for operation in operations(settings):
        paths.setdefault(operation.path, {})[operation.method] = operation.as_json(keys=settings.require_keys)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Millrace",
            "version": _version(),
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{"url": ".", "description": "Where this document is."}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": {name: schema for part in _PARTS for name, schema in part.SCHEMAS.items()},
            "responses": answers.responses(),
            "headers": dict(answers.HEADERS),
            "securitySchemes": _SECURITY,
        },
    }
    # As those read it who fetch it: no tuples, no enums.
    read: Json = msgspec.json.decode(msgspec.json.encode(document))
    return read


def _version() -> str:
    try:
        return version("millrace")
    except PackageNotFoundError:
        return "0"
