"""What a caller says of sampling, as the fields of `Sampling`; their types and values are checked afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from millrace_schemas import InvalidRequest, Sampling


def sampling_fields(sampling: object) -> dict[str, Any]:
    """Of a Sampling or a mapping, as from JSON. Raises InvalidRequest on anything else."""
    if isinstance(sampling, Sampling):
        return {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    if not isinstance(sampling, Mapping):
        raise InvalidRequest(
            f"sampling: expected Sampling or a mapping of its fields, got {type(sampling).__name__}", param="sampling"
        )
    values = dict(sampling)
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    if isinstance(values.get("logit_bias"), Mapping):
        values["logit_bias"] = {_token_id(token): bias for token, bias in values["logit_bias"].items()}
    return values


def _token_id(token: object) -> object:
    """A key of logit_bias: in JSON, whose keys are strings, an id is one, too."""
    if not isinstance(token, str):
        return token
    if not re.fullmatch(r"0|[1-9][0-9]{0,9}", token):
        raise InvalidRequest(
            f"sampling.logit_bias takes token ids for keys, not {token[:40]!r}", param="sampling.logit_bias"
        )
    return int(token)
