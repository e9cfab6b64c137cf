"""The document as a page: static HTML without a script, in which everything from the document is escaped."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template

from .json_schema import Json
from .schema_html import schema_html, table, text_html, words

_STATIC = Path(__file__).parents[1] / "static"
_TEMPLATE = Template(_STATIC.joinpath("docs.html").read_text(encoding="utf-8"))


def render(document: Json) -> str:
    """The page of `document`, which `build_document` made."""
    info = document["info"]
    schemas: dict[str, Json] = document["components"]["schemas"]
    return _TEMPLATE.substitute(
        title=escape(info["title"]),
        version=escape(info["version"]),
        description=text_html(info["description"]),
        keys=_keys(document),
        contents="".join(_contents(document)),
        operations="".join(_sections(document)),
        schemas="".join(_details(f"schema-{name}", escape(name), schema_html(it)) for name, it in schemas.items()),
    )


def _keys(document: Json) -> str:
    rows = [
        (f"<code>{escape(scheme['scheme'])}</code>", text_html(scheme["description"]))
        for scheme in document["components"]["securitySchemes"].values()
    ]
    return table(("scheme", "meaning"), rows)


def _contents(document: Json) -> Iterator[str]:
    for tag in document["tags"]:
        links = "".join(
            f'<li><a href="#{escape(operation["operationId"])}">{escape(operation["summary"])}</a></li>'
            for _, _, operation in _operations(document, tag["name"])
        )
        yield f"<section><h3>{escape(tag['name'])}</h3><ul>{links}</ul></section>"


def _sections(document: Json) -> Iterator[str]:
    for tag in document["tags"]:
        found = "".join(_operation(document, *one) for one in _operations(document, tag["name"]))
        yield f"<section><h2>{escape(tag['name'])}</h2><p>{text_html(tag['description'])}</p>{found}</section>"


def _operations(document: Json, tag: str) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield method, path, operation


def _operation(document: Json, method: str, path: str, operation: Json) -> str:
    head = (
        f'<b class="{escape(method)}">{escape(method.upper())}</b> <code>{escape(path)}</code> '
        f"<span>{escape(operation['summary'])}</span>"
    )
    parts = [f"<p>{text_html(operation['description'])}</p>" if operation["description"] else "", _access(operation)]
    for sample in operation["x-codeSamples"]:
        parts.append(f"<h4>Example</h4><pre><code>{escape(sample['source'])}</code></pre>")
    if operation["parameters"]:
        parts.append("<h4>Parameters</h4>" + _parameters(operation))
    if "requestBody" in operation:
        for kind, content in operation["requestBody"]["content"].items():
            note = "" if kind == "application/json" else f" <small>{escape(kind)}</small>"
            parts.append(f"<h4>Body</h4><p>{words(content['schema'])}{note}</p>")
    parts.append("<h4>Answers</h4>" + _answers(document, operation))
    return _details(operation["operationId"], head, "".join(parts))


def _access(operation: Json) -> str:
    wants = "A gateway that requires keys wants one." if operation["security"] else "Needs no key."
    return f"<p><small>{wants}</small></p>"


def _parameters(operation: Json) -> str:
    rows = [
        (
            f"<code>{escape(it['name'])}</code> <small>{escape(it['in'])}</small>",
            words(it["schema"]),
            text_html(it["description"]),
        )
        for it in operation["parameters"]
    ]
    return table(("name", "takes", "meaning"), rows)


def _answers(document: Json, operation: Json) -> str:
    rows = []
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            answer = document["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]
        # There may be no body at all.
        kinds = "; ".join(
            f"<code>{escape(kind)}</code> {words(content['schema'])}"
            for kind, content in answer.get("content", {}).items()
        )
        headers = "".join(f"<br><code>{escape(name)}</code>" for name in answer.get("headers", ()))
        rows.append((f"<b>{escape(status)}</b>", text_html(answer["description"]), kinds + headers))
    return table(("status", "meaning", "content"), rows)


def _details(anchor: str, head: str, inner: str) -> str:
    # A link to what stands within opens it.
    return f'<details><summary>{head}</summary><div id="{escape(anchor)}">{inner}</div></details>'
