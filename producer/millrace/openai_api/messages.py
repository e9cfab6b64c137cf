"""OpenAI's messages as those of a job: text only, parts joined, `developer` as `system`."""

from __future__ import annotations

from typing import Any

from .errors import ApiError, invalid
from .params import check_names

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
KNOWN = frozenset({"role", "content"})
#: What clients send back with an assistant's message, and the values that say nothing.
_EMPTY: tuple[Any, ...] = ([], {}, "")
REFUSED = dict.fromkeys(("name", "refusal", "annotations", "audio", "tool_calls", "function_call"), _EMPTY)


def read_messages(messages: object, param: str = "messages") -> list[dict[str, str]]:
    """Roles and texts. Raises ApiError naming the place, as in "messages[2].content"."""
    if not isinstance(messages, list) or not messages:
        raise invalid(f'{param} must be an array of {{"role": "user", "content": "..."}}, not empty', param=param)
    return [_message(message, f"{param}[{i}]") for i, message in enumerate(messages)]


def _message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise invalid(f"{where} must be an object with role and content", param=where)
    role = message.get("role")
    if role in ("tool", "function"):
        raise invalid(f"{where}.role: there are no tools here", param=f"{where}.role", code="unsupported_parameter")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    try:
        given = check_names(message, KNOWN, REFUSED)
    except ApiError as e:
        raise invalid(f"{where}: {e.message}", param=f"{where}.{e.param}", code=e.code or "") from None
    return {"role": ROLES[role], "content": read_text(given.get("content"), f"{where}.content")}


def read_text(content: object, where: str, kinds: tuple[str, ...] = ("text",)) -> str:
    """A string, or an array of parts of these types with a `text` each, joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{where} must be a string or an array of text parts", param=where)
    texts = []
    for i, part in enumerate(content):
        kind: Any = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds:
            only = " or ".join(repr(name) for name in kinds)
            raise invalid(f"{where}[{i}]: only parts of type {only} are supported", param=f"{where}[{i}].type")
        text = part.get("text")
        if not isinstance(text, str):
            raise invalid(f"{where}[{i}].text must be a string", param=f"{where}[{i}].text")
        texts.append(text)
    return "".join(texts)
