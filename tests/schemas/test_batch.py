"""The table of a batch's moves, against OpenAI's description of the statuses."""

from __future__ import annotations

import itertools

import pytest

from millrace_schemas import IllegalTransition
from millrace_schemas.batch import (
    BATCH_TERMINAL,
    BATCH_TRANSITIONS,
    Batch,
    BatchEvent,
    BatchStatus,
    Line,
    Page,
    ShardProgress,
    advance_batch,
)
from millrace_schemas.codec import decode, encode

LEGAL = {
    ("validating", "begin"): "in_progress",
    ("validating", "fail"): "failed",
    ("validating", "cancel"): "cancelling",
    ("in_progress", "finalize"): "finalizing",
    ("in_progress", "fail"): "failed",
    ("in_progress", "cancel"): "cancelling",
    ("finalizing", "complete"): "completed",
    ("finalizing", "expire"): "expired",
    ("cancelling", "cancelled"): "cancelled",
    ("cancelling", "fail"): "failed",
}


@pytest.mark.parametrize(("status", "event"), list(itertools.product(BatchStatus, BatchEvent)))
def test_every_move(status: BatchStatus, event: BatchEvent) -> None:
    if (status, event) in LEGAL:
        assert advance_batch(status, event) == LEGAL[status, event]
    else:
        with pytest.raises(IllegalTransition, match=f"{status}.*{event}"):
            advance_batch(status, event)


def test_an_end_is_an_end_and_all_else_leads_to_one() -> None:
    for status, moves in BATCH_TRANSITIONS.items():
        assert (status in BATCH_TERMINAL) == (not moves)


def test_records_survive_their_bytes() -> None:
    batch = Batch(
        id="batch_1", input="s3://a/b", output="s3://a/", created_at=1.5, expires_at=2.5, completion_window="1s"
    )
    assert decode(encode(batch), Batch) == batch
    progress = ShardProgress(page=Page(7, 90, 2, 1), under_way=(Line(1, 0, 7, "a"),), done=True)
    assert decode(encode(progress), ShardProgress) == progress
