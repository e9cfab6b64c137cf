"""What `millrace bulk` logs: which batch, whose and in which trace, and never a word of its file."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bulk_parts import Batches, BulkProcess, chat_line, written
from fake_worker import FakeWorker
from millrace.bulk import log
from millrace.tracing import continued
from millrace_schemas import InvalidRequest
from millrace_schemas.batch import Batch, BatchError, BatchProgress, BatchStatus
from millrace_schemas.codec import decode, encode

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
SECRET = "kohlrabi"


def batch(**fields: object) -> Batch:
    given = {"created_at": 100.0, "expires_at": 200.0, "completion_window": "100s", **fields}
    return Batch(id="batch_1", input="file:///in", output="file:///out", **given)  # type: ignore[arg-type]


def test_an_end() -> None:
    ended = batch(
        status=BatchStatus.COMPLETED, completed_at=103.25, total=9, model="demo", tenant="acme", traceparent=TRACEPARENT
    )
    with capture_logs() as lines:
        log.batch_ended(ended, BatchProgress(completed=7, failed=2, completion_tokens=5))
        log.batch_ended(ended, {"completed": 9})
    assert lines[0] == {
        "event": "batch ended", "log_level": "info", "batch": "batch_1", "model": "demo", "tenant": "acme",
        "trace_id": TRACE, "status": "completed", "total": 9, "completed": 7, "failed": 2, "prompt_tokens": 0,
        "completion_tokens": 5, "cached_tokens": 0, "seconds": 3.25,
    }  # fmt: skip
    assert (lines[1]["completed"], lines[1]["failed"]) == (9, 0)


def test_a_failure_has_codes_and_no_words() -> None:
    error = BatchError("url_mismatch", f"The url is '{SECRET}'", 3, "url")
    with capture_logs() as lines:
        log.batch_ended(batch(status=BatchStatus.FAILED, failed_at=101.0, errors=(error, BatchError("x", SECRET))), {})
    assert (lines[0]["errors"], lines[0]["log_level"]) == (["url_mismatch (line 3)", "x"], "warning")
    assert SECRET not in str(lines)


def test_what_happens_in_between() -> None:
    one = batch(model="demo", total=5)
    with capture_logs() as lines:
        log.batch_taken(one, 2)
        log.batch_began(one)
        log.batch_waits("batch_2", "x" * 2000)
        log.batch_waits(one, "no S3")
        log.parts_left(one, "no right")
        log.batch_cancelled(one)
        log.shard_ended(one, 0)
        log.shard_lost(one, 3)
        log.redis_away("no")
        try:
            raise ValueError(SECRET)
        except ValueError as e:
            log.turn_failed("batch_1", e)
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("batch taken", "debug"), ("batch began", "info"), ("batch waits", "warning"), ("batch waits", "warning"),
        ("parts left", "warning"), ("batch is cancelled", "info"), ("shard ended", "info"), ("shard lost", "warning"),
        ("no Redis", "warning"), ("turn failed", "error"),
    ]  # fmt: skip
    assert lines[0]["shard"] == 2
    assert (lines[2]["batch"], len(lines[2]["problem"])) == ("batch_2", 500)
    assert lines[6]["shard"] == 0
    assert lines[9]["error"] == "ValueError"
    assert lines[9]["where"][0].startswith("test_log.py:")
    assert SECRET not in str(lines[9])
    assert all("tenant" not in line for line in lines)


def test_a_trace_is_checked_like_that_of_a_job() -> None:
    assert decode(encode(batch(traceparent=TRACEPARENT)), Batch).traceparent == TRACEPARENT
    with pytest.raises(InvalidRequest, match="traceparent is 00-"):
        batch(traceparent="00-nonsense")


@pytest.mark.parametrize("form", ["json", "console"])
def test_structlog_and_logging_look_alike(form: str) -> None:
    script = f"""
import logging, structlog
from millrace import logs
logs.configure("info", {form!r})
log = structlog.get_logger("a")
log.debug("not seen")
log.info("mine", batch="b1")
logging.getLogger("rq.worker").warning("theirs")
logging.getLogger("x").info("extra", extra={{"job": "j1"}})
def fail(prompt):
    raise ValueError("what went wrong")
try:
    fail("kohl" + "rabi")
except ValueError:
    log.exception("failed")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    assert "not seen" not in run.stderr
    assert "what went wrong" in run.stderr
    assert SECRET not in run.stderr
    if form == "json":
        lines = [json.loads(line) for line in run.stderr.splitlines()]
        assert [(line["event"], line["level"]) for line in lines] == [
            ("mine", "info"), ("theirs", "warning"), ("extra", "info"), ("failed", "error"),
        ]  # fmt: skip
        assert [line.get("batch") or line.get("job") for line in lines[:3]] == ["b1", None, "j1"]
        assert {"logger", "timestamp"} <= set(lines[0])


def test_the_command_logs_a_batch_and_not_its_file(redis_url: str, batches: Batches, tmp_path: Path) -> None:
    flags = ("--lease", "2", "--flush", "0.3", "--log-format", "json", "--log-level", "debug")
    good = written(str(tmp_path / "in.jsonl"), [chat_line("a", SECRET), chat_line("b", f"fail {SECRET}")])
    bad = written(str(tmp_path / "bad.jsonl"), [chat_line("a"), chat_line(SECRET, url=SECRET), chat_line(SECRET)])
    with FakeWorker(redis_url), BulkProcess(redis_url, tmp_path, *flags) as bulk:
        with continued(TRACEPARENT):
            first = batches.make(good, str(tmp_path / "out"), tenant="acme")
        second = batches.make(bad, str(tmp_path / "out"))
        limit = time.monotonic() + 30
        while len(ended := [line for line in lines_of(bulk.log) if line["event"] == "batch ended"]) < 2:
            assert time.monotonic() < limit, bulk.log
            time.sleep(0.05)
        text = bulk.log
    assert SECRET not in text
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines_of(text))
    of_first = {line["event"]: line for line in lines_of(text) if line.get("batch") == first}
    assert {"batch taken", "batch began", "shard ended", "batch ended"} <= set(of_first)
    assert {(line["tenant"], line["trace_id"]) for line in of_first.values()} == {("acme", TRACE)}
    found = {line["batch"]: line for line in ended}
    assert [found[first][name] for name in ("status", "total", "completed", "failed")] == ["completed", 2, 1, 1]
    assert found[second]["status"] == "failed"
    assert found[second]["errors"] == ["duplicate_custom_id (line 3)"]


def lines_of(text: str) -> list[dict[str, Any]]:
    """Nothing else is written but that it works."""
    return [json.loads(line) for line in text.splitlines() if line != "millrace bulk: working"]
