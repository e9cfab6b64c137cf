"""Token counts by tier are written only where older releases would not stumble without need."""

from __future__ import annotations

import msgspec
import pytest

from millrace_schemas import Result, Usage, decode, encode
from millrace_schemas.states import JobState


@pytest.mark.parametrize(
    ("by_tier", "is_written"),
    [({}, False), ({"gpu": 8}, False), ({"cpu": 8}, True), ({"gpu": 3, "disk": 5}, True)],
    ids=["none", "gpu", "cpu", "both"],
)
def test_tiers_are_written_where_one_below_the_device_had_some(by_tier: dict[str, int], is_written: bool) -> None:
    usage = Usage.of(10, 3, sum(by_tier.values()), by_tier)
    assert usage.cached_by_tier == by_tier
    result = Result(id="demo-1", model="demo", state=JobState.COMPLETED, usage=usage)
    written = msgspec.to_builtins(result)["usage"]
    assert written.get("cached_by_tier") == (by_tier if is_written else None)
    assert set(written) - {"cached_by_tier"} == {"prompt_tokens", "completion_tokens", "cached_tokens"}
    assert decode(encode(result), Result).usage == usage


def test_results_of_an_older_release_came_from_the_device() -> None:
    assert Usage(10, 3, 8).cached_by_tier == {"gpu": 8}
    assert Usage(10, 3, 0).cached_by_tier == {}
