"""/v1/models, as the document describes them."""

from __future__ import annotations

from collections.abc import Mapping

from . import answers
from .json_schema import BOOLEAN, INTEGER, STRING, Json, array, closed, constant, described, ref
from .operation import Operation, parameter

SCHEMAS: Mapping[str, Json] = {
    "Model": closed(
        {
            "id": STRING,
            "object": constant("model"),
            "created": described(constant(0), "Nobody here knows."),
            "owned_by": constant("millrace"),
            "max_model_len": described(INTEGER, "Most tokens of prompt and answer together."),
            "has_chat_template": described(BOOLEAN, "Whether it takes messages."),
        }
    ),
    "ModelList": closed({"object": constant("list"), "data": array(ref("Model"))}),
}

_EXAMPLE = {
    "id": "demo", "object": "model", "created": 0, "owned_by": "millrace", "max_model_len": 512,
    "has_chat_template": True,
}  # fmt: skip

OPERATIONS = (
    Operation(
        method="get",
        path="/v1/models",
        id="listModels",
        tag="Models",
        summary="List the models that workers have registered",
        answers={200: answers.json_answer("Models.", ref("ModelList"), {"object": "list", "data": [_EXAMPLE]})},
        errors=(500, 503),
    ),
    Operation(
        method="get",
        path="/v1/models/{name}",
        id="readModel",
        tag="Models",
        summary="Read a model",
        parameters=(parameter("name", "path", "Its name; slashes may stand in it as they are.", STRING),),
        answers={200: answers.json_answer("The model.", ref("Model"), _EXAMPLE)},
        errors=(404, 500, 503),
        target="/v1/models/demo",
    ),
)
