from __future__ import annotations

import pytest

from millrace_schemas import InvalidRequest, Request, decode, encode
from millrace_schemas.trace_context import is_traceparent, trace_id_of

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_request_carries_it() -> None:
    assert decode(encode(Request(model="m", prompt="p", traceparent=GOOD)), Request).traceparent == GOOD
    assert trace_id_of(GOOD) == "0af7651916cd43dd8448eb211c80319c"
    # What workers of an older release read is as it was.
    assert b"traceparent" not in encode(Request(model="m", prompt="p"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD.upper(),
        GOOD + "0",
        GOOD + "\n",
        "ff" + GOOD[2:],
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        GOOD.replace("-", "_"),
        GOOD.replace("a", "g"),
        "x" * 10_000,
    ],
)
def test_what_is_none_is_refused(text: str) -> None:
    assert not is_traceparent(text)
    with pytest.raises(InvalidRequest, match="traceparent is 00-") as refused:
        Request(model="m", prompt="p", traceparent=text)
    assert refused.value.param == "traceparent"
    assert len(str(refused.value)) < 300
