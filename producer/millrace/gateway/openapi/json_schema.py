"""JSON Schema in a few words: what the parts of the document are written with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

Json = dict[str, Any]

_COMPONENTS = "#/components/schemas/{name}"
NULL: Json = {"type": "null"}
STRING: Json = {"type": "string"}
INTEGER: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
BOOLEAN: Json = {"type": "boolean"}


def ref(name: str) -> Json:
    """A schema of the document by its name."""
    return {"$ref": _COMPONENTS.format(name=name)}


def closed(properties: Mapping[str, Json], *, optional: Iterable[str] = (), **more: Any) -> Json:
    """An object of these properties and no others, all of them required but the optional ones."""
    left_out = set(optional)
    required = [name for name in properties if name not in left_out]
    return {
        "type": "object",
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
        **more,
    }


def body(properties: Mapping[str, Json], *, required: Iterable[str] = (), **more: Any) -> Json:
    """An object that a client sends: these properties and no others; null says no more than leaving one out."""
    needed = list(required)
    return {
        "type": "object",
        "properties": {name: it if name in needed else or_null(it) for name, it in properties.items()},
        "required": needed,
        "additionalProperties": False,
        **more,
    }


def array(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


def one_of(*choices: Json, **more: Any) -> Json:
    return {"oneOf": list(choices), **more}


def constant(*values: Any) -> Json:
    return {"const": values[0]} if len(values) == 1 else {"enum": list(values)}


def or_null(schema: Json) -> Json:
    """`schema`, or null."""
    kind = schema.get("type")
    if schema in (NULL, {}) or None in schema.get("enum", ()) or (isinstance(kind, list) and "null" in kind):
        return schema
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if isinstance(kind, str):
        return {**schema, "type": [kind, "null"]}
    if "oneOf" in schema:
        return schema if NULL in schema["oneOf"] else {**schema, "oneOf": [*schema["oneOf"], NULL]}
    return {"anyOf": [schema, NULL]}


def refused(table: Mapping[str, tuple[Any, ...]]) -> dict[str, Json]:
    """Properties of which only those values are taken that ask for nothing; `table` is what the gateway checks with."""
    return {
        name: {"enum": [*values, None], "description": "Of OpenAI, and not here: only what asks for nothing."}
        for name, values in table.items()
    }


def described(schema: Json, description: str) -> Json:
    return {**schema, "description": description}


def structs(*types: Any) -> dict[str, Json]:
    """The schemas of msgspec's structs, and of all that they hold, as the gateway writes them: with every field."""
    _, found = msgspec.json.schema_components(types, ref_template=_COMPONENTS)
    return {name: _written(schema) for name, schema in found.items()}


def _written(schema: Json) -> Json:
    """Defaults are for those who read bytes of an older version."""
    schema = {name: value for name, value in schema.items() if name != "title"}
    if "description" in schema:
        schema["description"] = inspect.cleandoc(schema["description"])
    if "enum" in schema:
        return {"type": "string", **schema}
    properties = {
        name: {key: value for key, value in property_.items() if key != "default"}
        for name, property_ in schema["properties"].items()
    }
    # What has no default and is not required is not always written.
    always = set(schema.get("required", ()))
    required = [name for name, it in schema["properties"].items() if name in always or "default" in it]
    return {**schema, "properties": properties, "required": required}
