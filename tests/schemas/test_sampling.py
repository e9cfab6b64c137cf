"""Sampling out of range is refused where it is made, and the error names the field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from millrace_schemas import InvalidRequest, Sampling
from millrace_schemas.sampling import (
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)

BAD: list[tuple[str, Any]] = [
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("min_tokens", -1),
    ("temperature", -0.1),
    ("temperature", 100.5),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("top_k", -1),
    ("top_k", 2**31),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("min_p", -0.01),
    ("min_p", 1.01),
    ("min_p", math.nan),
    ("presence_penalty", 2.01),
    ("presence_penalty", -2.01),
    ("presence_penalty", math.nan),
    ("frequency_penalty", 2.01),
    ("frequency_penalty", -math.inf),
    ("logit_bias", {5: 100.5}),
    ("logit_bias", {5: -math.inf}),
    ("logit_bias", {5: math.nan}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {2**31: 1.0}),
    ("logit_bias", {"5": 1.0}),
    ("logit_bias", dict.fromkeys(range(MAX_LOGIT_BIAS + 1), 1.0)),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", 100.5),
    ("repetition_penalty", math.nan),
    ("logprobs", -1),
    ("logprobs", MAX_LOGPROBS + 1),
    ("seed", -1),
    ("seed", 2**63),
    ("stop", "one string"),
    ("stop", ("",)),
    ("stop", ("x" * (MAX_STOP_LENGTH + 1),)),
    ("stop", ("x",) * (MAX_STOP_STRINGS + 1)),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", (2**31,)),
    ("stop_token_ids", (1,) * (MAX_STOP_TOKEN_IDS + 1)),
]

GOOD: list[tuple[str, Any]] = [
    ("max_tokens", 1),
    ("max_tokens", None),
    ("min_tokens", 5),
    ("temperature", 0.0),
    ("temperature", 100.0),
    ("top_k", 0),
    ("top_k", 2**31 - 1),
    ("top_p", 1e-9),
    ("top_p", 1.0),
    ("min_p", 0.0),
    ("min_p", 1.0),
    ("presence_penalty", -2.0),
    ("frequency_penalty", 2.0),
    ("logit_bias", {0: -100.0, 2**31 - 1: 100.0}),
    ("logit_bias", dict.fromkeys(range(MAX_LOGIT_BIAS), 1.0)),
    ("repetition_penalty", 0.1),
    ("repetition_penalty", 100.0),
    ("logprobs", None),
    ("logprobs", 0),
    ("logprobs", MAX_LOGPROBS),
    ("seed", 0),
    ("seed", 2**63 - 1),
    ("stop", ("x" * MAX_STOP_LENGTH,) * MAX_STOP_STRINGS),
    ("stop_token_ids", (0, 2**31 - 1) * (MAX_STOP_TOKEN_IDS // 2)),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda v: repr(v)[:30])
def test_a_bad_value_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"sampling\.{field} ") as caught:
        Sampling(**{field: value})
    assert caught.value.param == f"sampling.{field}"


@pytest.mark.parametrize(("field", "value"), GOOD, ids=lambda v: repr(v)[:30])
def test_values_at_the_limits_are_taken(field: str, value: Any) -> None:
    assert getattr(Sampling(**{field: value}), field) == value


def test_min_tokens_may_not_pass_max_tokens() -> None:
    Sampling(min_tokens=4, max_tokens=4)
    with pytest.raises(InvalidRequest, match="min_tokens is 5, more than max_tokens = 4") as caught:
        Sampling(min_tokens=5, max_tokens=4)
    assert caught.value.param == "sampling.min_tokens"


def test_every_field_has_a_bad_value_here() -> None:
    assert {field for field, _ in BAD} == set(Sampling.__struct_fields__) - {"ignore_eos"}
