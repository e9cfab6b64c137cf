"""The gateway itself, as the document describes it: its health, its numbers, its pages."""

from __future__ import annotations

from collections.abc import Mapping

from millrace.gateway.page import ASSETS
from millrace.overview import Overview

from . import answers
from .json_schema import STRING, Json, array, closed, constant, ref, structs
from .operation import Operation, parameter

_STRUCTS = structs(Overview)
_STATUS = _STRUCTS.pop("Overview")["properties"]

SCHEMAS: Mapping[str, Json] = {**_STRUCTS, "Status": closed(_STATUS)}


def _text(description: str, *kinds: str) -> Json:
    return {"description": description, "content": {kind: {"schema": STRING} for kind in kinds}}


def _get(path: str, id_: str, summary: str, answer: Json) -> Operation:
    return Operation(method="get", path=path, id=id_, tag="Service", summary=summary, answers={200: answer})


#: A key that cannot be looked up is answered before there is a page.
_NO_NUMBERS = {
    "description": "Redis is away: the page without numbers or, when that leaves a key unknown, an error.",
    "content": {"text/html": {"schema": STRING}, "application/json": {"schema": ref("Error")}},
}

OPERATIONS = (
    Operation(
        method="get",
        path="/",
        id="statusPage",
        tag="Service",
        summary="The status page",
        answers={
            200: _text(
                "Queues, plots, workers, bulk files, the newest failures, and a form to try a prompt.", "text/html"
            ),
            503: _NO_NUMBERS,
        },
    ),
    Operation(
        method="get",
        path="/status.json",
        id="status",
        tag="Service",
        summary="The numbers of the status page",
        answers={200: answers.json_answer("All queues at a glance.", ref("Status"))},
        errors=(500, 503),
    ),
    Operation(
        method="get",
        path="/page/{name}",
        id="pageAsset",
        tag="Service",
        summary="What the pages load",
        parameters=(parameter("name", "path", "A file.", {"enum": list(ASSETS)}),),
        answers={200: _text("A script or a style.", *dict.fromkeys(kind for _, kind in ASSETS.values()))},
        errors=(404,),
        target="/page/page.css",
    ),
    _get(
        "/healthz",
        "health",
        "Whether the process answers",
        answers.json_answer("It does.", closed({"status": constant("ok")}), {"status": "ok"}),
    ),
    Operation(
        method="get",
        path="/readyz",
        id="readiness",
        tag="Service",
        summary="Whether a live worker serves a model",
        answers={
            200: answers.json_answer(
                "The models that are served.",
                closed({"status": constant("ready"), "models": array(STRING, minItems=1)}),
                {"status": "ready", "models": ["demo"]},
            )
        },
        errors=(500, 503),
    ),
    _get(
        "/metrics",
        "metrics",
        "Requests, backlog and workers for Prometheus",
        _text("Prometheus' text format, version 0.0.4.", "text/plain"),
    ),
    _get(
        "/openapi.json",
        "document",
        "This document",
        answers.json_answer("OpenAPI 3.1.", {"type": "object", "required": ["openapi"]}),
    ),
    _get("/docs", "docs", "This document as a page", _text("It loads nothing from elsewhere.", "text/html")),
)
