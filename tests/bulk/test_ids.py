"""Ids of lines: always the same, never another's, and ids like all others."""

from __future__ import annotations

from millrace.bulk.answers import line_job_id
from millrace_schemas import queue_of_job
from millrace_schemas.batch import Batch
from millrace_schemas.job import time_of_job


def batch(name: str) -> Batch:
    return Batch(
        id=name, input="s3://a/b", output="s3://a", created_at=1_795_000_000.5, expires_at=2e9, completion_window="1h"
    )


def test_a_line_has_one_id() -> None:
    ids = [line_job_id(batch(name), "org--model", number) for name in ("batch_1", "batch_2") for number in range(500)]
    assert len(set(ids)) == 1000
    assert ids[7] == line_job_id(batch("batch_1"), "org--model", 7)


def test_it_is_an_id_like_all_others() -> None:
    job_id = line_job_id(batch("batch_1"), "org--model", 7)
    assert queue_of_job(job_id) == "org--model"
    assert time_of_job(job_id) == 1_795_000_000.5
