"""A JSON Schema of the document as HTML: in words, and an object's properties as a table. Everything is escaped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from .json_schema import Json

#: Limits in words; each is filled in with its value.
_LIMITS: Mapping[str, str] = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} pairs",
    "pattern": "like {}",
    "default": "default {}",
}
_COLUMNS = ("name", "takes", "meaning")


def schema_html(schema: Json) -> str:
    """A whole schema: its words, and its properties where it has some."""
    note = f"<p>{text_html(schema['description'])}</p>" if "description" in schema else ""
    if "properties" in schema:
        return note + _properties(schema)
    return f"{note}<p>{words(schema)}</p>"


def words(schema: Json) -> str:
    """What a value may be, in a line."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f'<a href="#schema-{escape(name)}">{escape(name)}</a>'
    for key in ("oneOf", "anyOf"):
        if key in schema and "properties" not in schema:
            limits = [_limit("default", schema["default"])] if "default" in schema else []
            return " or ".join(words(option) for option in schema[key]) + "".join(f", {limit}" for limit in limits)
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        return " or ".join(_value(value) for value in values) + (
            f", {_limit('default', schema['default'])}" if "default" in schema else ""
        )
    return ", ".join((_kind(schema), *_limits(schema)))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of HTML; a phone shows each as lines with the columns' names."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-label="{escape(name)}">{cell}</td>' for name, cell in zip(columns, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text_html(text: str) -> str:
    """Plain text in which `backticks` are code."""
    parts = escape(text).split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _properties(schema: Json) -> str:
    required = schema.get("required", ())
    rows = []
    for name, property_ in schema["properties"].items():
        need = " <small>required</small>" if name in required else ""
        nested = _properties(property_) if "properties" in property_ else ""
        meaning = text_html(property_.get("description", "")) + nested
        rows.append((f"<code>{escape(name)}</code>{need}", words(property_), meaning))
    return table(_COLUMNS, rows)


def _kind(schema: Json) -> str:
    kind = schema.get("type", "anything")
    names = [escape(name) for name in ([kind] if isinstance(kind, str) else kind)]
    if "items" in schema and schema.get("maxItems") != 0:
        names[0] += f" of {words(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        names[0] += f" of {words(schema['additionalProperties'])}"
    return " or ".join(names)


def _limits(schema: Json) -> Iterator[str]:
    for key in _LIMITS:
        if key in schema:
            yield _limit(key, schema[key])


def _limit(key: str, value: object) -> str:
    return _LIMITS[key].format(_value(value))


def _value(value: object) -> str:
    return f"<code>{escape(value if isinstance(value, str) and value else json.dumps(value))}</code>"
