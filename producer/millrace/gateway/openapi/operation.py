"""One route and method, as the document describes it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from millrace.gateway.authentication import Access, access_to

from . import answers
from .json_schema import STRING, Json, closed, constant

#: Where `millrace up` listens.
BASE = "http://localhost:8000"
_KEYS: list[Json] = [{"bearer": []}, {"basic": []}]
#: Whoever asks for something may be refused; where keys are known, Redis is asked for them.
_ERRORS: Mapping[Access, tuple[int, ...]] = {
    Access.EVERYBODY: (403,),
    Access.OPERATOR: (401, 403, 503),
    Access.KEY: (401, 403, 503),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`answers` are those without an error, by status; `errors` the statuses of the others.

    The example is a command that works when it is pasted into a shell beside `millrace up`: `setup` stands before it
    and sets what `target`, the path with its query, needs.
    """

    method: str
    path: str
    id: str
    tag: str
    summary: str
    description: str = ""
    parameters: tuple[Json, ...] = ()
    body: Json | None = None
    #: multipart/form-data needs `sends`, the words of a command of curl in the place of its example.
    body_type: str = "application/json"
    sends: str = ""
    answers: Mapping[int, Json] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    setup: str = ""
    target: str = ""

    @property
    def curl(self) -> str:
        streams = any("text/event-stream" in answer.get("content", ()) for answer in self.answers.values())
        flags = "-sN" if streams else "-s"
        verb = "" if self.method == "get" or self.body else f" -X {self.method.upper()}"
        url = BASE + (self.target or self.path)
        # Names of the shell stand in double quotes; those are the only ones.
        command = f"curl {flags}{verb} " + (f'"{url}"' if "$" in url else shlex.quote(url))
        if self.sends:
            return self.setup + command + self.sends
        return self.setup + command + ("" if self.body is None else sending(self.body["example"]))

    def as_json(self, *, keys: bool) -> Json:
        """`keys`: whether the gateway requires some; where it does not, a request without is taken, too."""
        access = access_to(self.path)
        statuses = sorted({*self.errors, *_ERRORS[access]} - self.answers.keys())
        answered = {str(status): answer for status, answer in self.answers.items()}
        made: Json = {
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "description": self.description,
            "parameters": list(self.parameters),
            "responses": answered | {str(status): answers.error(status) for status in statuses},
            "security": [] if access is Access.EVERYBODY else _KEYS if keys else [*_KEYS, {}],
            "x-codeSamples": [{"lang": "Shell", "label": "curl", "source": self.curl}],
        }
        if self.body is not None:
            made["requestBody"] = {"required": True, "content": {self.body_type: self.body}}
        return made


def sending(value: object) -> str:
    """The rest of a command of curl that posts `value`."""
    data = shlex.quote(json.dumps(value, indent=2))
    return f" \\\n  -H 'content-type: application/json' \\\n  -d {data}"


def parameter(name: str, where: str, description: str, schema: Json, example: object = None) -> Json:
    found: Json = {"name": name, "in": where, "description": description, "schema": schema}
    if example is not None:
        found["example"] = example
    return {**found, "required": True} if where == "path" else found


def events(*data: Json, description: str, done: bool = False) -> Json:
    """The content of a stream: what one event is, whose data is JSON of one of these schemas; `done`: or "[DONE]"."""
    json_: Json = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": data[0] if len(data) == 1 else {"anyOf": list(data)},
    }
    fields = {"id": STRING, "event": STRING, "data": {"anyOf": [constant("[DONE]"), json_]} if done else json_}
    return {"text/event-stream": {"schema": closed(fields, optional=("id", "event"), description=description)}}
