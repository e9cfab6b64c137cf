"""The parameters of OpenAI's completions: which there are, which of theirs we lack, and how ours are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millrace.submission import FIELDS
from millrace_schemas import MillraceError

from .errors import ApiError, error_of, invalid

#: Those that `Sampling` has under the same names; top_k and all behind it are not OpenAI's but vLLM's.
SAMPLING = (
    "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "top_k", "min_p",
    "min_tokens", "stop_token_ids", "ignore_eos", "repetition_penalty",
)  # fmt: skip
#: What says something about the caller and nothing about the answer; it is not used.
_CALLER = ("user", "safety_identifier", "prompt_cache_key")
#: What is said to the prefix cache: vLLM's name, and ours.
_CACHE = ("cache_salt", "cache", "cache_ttl")
#: Those of both endpoints that are used, or that say something about the caller and not about the answer.
COMMON = frozenset({*SAMPLING, *_CACHE, "model", "max_tokens", "stream", "stream_options", "user", "metadata"})
#: OpenAI's that are not here, with the values that ask for nothing (null never does). Others are refused, not ignored.
LACKING: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
}


def check_names(
    body: Mapping[str, Any], known: frozenset[str], lacking: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """`body` without what asks for nothing. Raises ApiError naming a parameter that is not here."""
    given = {name: value for name, value in body.items() if value is not None}
    for name in list(given):
        if name in known:
            continue
        if name not in lacking:
            raise invalid(f"there is no parameter {name[:80]!r}", param=name[:80], code="unknown_parameter")
        if not any(_same(given[name], value) for value in lacking[name]):
            only = ", ".join(repr(value) for value in lacking[name])
            raise invalid(
                f"{name} is not supported here" + (f"; it may only be {only}" if only else "; leave it out"),
                param=name,
                code="unsupported_parameter",
            )
        del given[name]
    return given


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON, where true is no 1, within objects and arrays as well."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def common_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `submit`, all but the prompt's, from a body that `check_names` passed. `submit` checks their values.

    Raises ApiError on what `submit` would not understand.
    """
    model, stream = given.get("model"), given.get("stream", False)
    if not isinstance(model, str) or not model:
        raise invalid("model must be the name of one; GET /v1/models lists them", param="model")
    if not isinstance(stream, bool):
        raise invalid("stream must be true or false", param="stream")
    for name in _CALLER:
        if not isinstance(given.get(name, ""), str):
            raise invalid(f"{name} must be a string", param=name)
    sampling = {name: given[name] for name in (*SAMPLING, "max_tokens") if name in given}
    if sampling.get("top_k") == -1:
        # vLLM's other way to say "all".
        sampling["top_k"] = 0
    fields = {"model": model, "stream": stream, "sampling": sampling, "metadata": given.get("metadata")}
    return fields | {name: given[name] for name in _CACHE if name in given}


def include_usage(given: Mapping[str, Any]) -> bool:
    """Whether a stream ends with an event of token counts."""
    options = given.get("stream_options")
    if options is None:
        return False
    if not given.get("stream"):
        raise invalid("stream_options goes with stream: true alone", param="stream_options")
    if not isinstance(options, dict):
        raise invalid("stream_options must be an object", param="stream_options")
    # include_obfuscation pads events against listeners who count bytes; false is what happens here.
    options = check_names(options, frozenset({"include_usage"}), {"include_obfuscation": (False,)})
    wanted = options.get("include_usage", False)
    if not isinstance(wanted, bool):
        raise invalid("stream_options.include_usage must be true or false", param="stream_options.include_usage")
    return wanted


def rename(error: MillraceError, names: Mapping[str, str]) -> ApiError:
    """`error` in the words of OpenAI's bodies: `names` maps fields of a job, and `sampling.` disappears."""
    found = error_of(error)
    if found.param is None:
        return found
    field = found.param.removeprefix("sampling.")
    if found.param == field and field not in FIELDS:
        return found
    name = names.get(field, field)
    if found.message.startswith(found.param):
        found.message = name + found.message[len(found.param) :]
    found.param = name
    return found
