"""`--watch`: a bar in a terminal, lines or JSON elsewhere, through an outage, and what Ctrl-C ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from batch_maker import moved, new_batch, put
from bulk_parts import Batches, BulkThread, chat_line, written
from fake_worker import FakeWorker
from millrace.embedded import EmbeddedRedis
from millrace_schemas.batch import BatchError, BatchStatus
from millrace_schemas.keys import batch_key
from terminal import environment, in_terminal, read_until

ID = "batch_00112233445566778899aabbccddeeff"


def watching(url: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "millrace", "batch", *arguments, "--watch", "--redis-url", url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def test_a_bar_from_validation_to_the_end(redis_url: str, raw: redis.Redis) -> None:
    batch = put(raw, new_batch(ID), checked="0.4250")
    with in_terminal("batch", "status", ID, "--watch", "--redis-url", redis_url) as (process, terminal):
        seen = read_until(terminal, b" 42%")
        assert b"prompts.jsonl" in seen
        assert b"validating" in seen
        batch = moved(raw, batch, BatchStatus.IN_PROGRESS, total=20_000, completed=4_000, failed=1_000)
        assert b"in progress" in read_until(terminal, b"1,000 failed")
        raw.hset(batch_key(ID), mapping={"completed": 9_000, "completion_tokens": 90_000})
        seen = read_until(terminal, b" tok/s") + read_until(terminal, b" left")
        for words in (b" 50%", b"10,000 of 20,000", b" lines/s"):
            assert words in seen, words
        moved(raw, batch, BatchStatus.IN_PROGRESS, problem="no worker serves \x1b[2Jdemo")
        # Yellow, and with nothing that steers the terminal.
        assert "\x1b[33mwaiting: no worker serves \ufffd[2Jdemo".encode() in read_until(terminal, b"Jdemo")
        batch = moved(raw, batch, BatchStatus.FINALIZING, completed=19_000)
        read_until(terminal, b"finalizing")
        moved(raw, batch, BatchStatus.COMPLETED, output_file_id="file-1")
        read_until(terminal, b"output: s3://bucket/out/")
        assert process.wait(20) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_watch_and_not_the_batch(
    redis_url: str, raw: redis.Redis, batches: Batches, number: int, code: int
) -> None:
    put(raw, new_batch(ID, status=BatchStatus.IN_PROGRESS, total=2))
    with in_terminal("batch", "status", ID, "--watch", "--redis-url", redis_url) as (process, terminal):
        read_until(terminal, b"0 of 2")
        process.send_signal(number)
        seen = read_until(terminal, f"millrace batch cancel {ID}".encode())
        assert f"millrace batch status {ID} --watch".encode() in seen
        assert process.wait(20) == code
    assert b"Traceback" not in seen
    assert batches.view(ID).cancel is None


def test_submit_and_watch(redis_url: str, bulk: BulkThread, tmp_path: Path) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a"), chat_line("b", "fail")])
    with FakeWorker(redis_url):
        out, err = watching(redis_url, "submit", source, "--output", str(tmp_path)).communicate(timeout=60)
    assert err == ""
    batch_id, *lines = out.splitlines()
    assert lines[-3].startswith("completed: 1 completed, 1 failed of 2")
    assert lines[-2:] == [
        f"output: file://{tmp_path}/{batch_id}_output.jsonl",
        f"errors: file://{tmp_path}/{batch_id}_errors.jsonl",
    ]
    # A line for every change.
    assert len(set(lines)) == len(lines)


def test_json_for_programs_and_the_exit_code(redis_url: str, raw: redis.Redis) -> None:
    batch = put(raw, new_batch(ID), checked="0.5")
    with watching(redis_url, "status", ID, "--json") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert (first["id"], first["status"], first["progress"]["checked"]) == (ID, "validating", 0.5)
        # Looks that see nothing new show nothing.
        time.sleep(1.2)
        batch = moved(raw, batch, BatchStatus.IN_PROGRESS, total=10, completed=4)
        second = json.loads(process.stdout.readline())
        assert second["request_counts"] == {"total": 10, "completed": 4, "failed": 0}
        assert (second["progress"]["share"], second["progress"]["rate"] > 0) == (0.4, True)
        error = BatchError("input_changed", "it is another file now")
        moved(raw, batch, BatchStatus.FAILED, errors=(error,))
        rest = [json.loads(line) for line in process.stdout]
        assert (rest[-1]["status"], rest[-1]["progress"]["rate"]) == ("failed", None)
        assert rest[-1]["progress"]["error"] == "it is another file now [input_changed]"
        assert process.wait(20) == 1


def test_through_an_outage(tmp_path: Path) -> None:
    with EmbeddedRedis(durable=True) as server:
        with redis.Redis.from_url(server.url) as raw:
            batch = put(raw, new_batch(ID, status=BatchStatus.IN_PROGRESS, total=2))
        with (
            in_terminal("batch", "status", ID, "--watch", "--redis-url", server.url) as (drawing, terminal),
            watching(server.url, "status", ID) as printing,
        ):
            assert printing.stdout is not None
            assert printing.stderr is not None
            read_until(terminal, b"0 of 2")
            assert printing.stdout.readline() == "in_progress: 0 completed, 0 failed of 2\n"
            server.stop()
            read_until(terminal, b"not up to date, and still trying: no Redis at")
            assert "still trying" in printing.stderr.readline()
            server.start()
            with redis.Redis.from_url(server.url) as raw:
                moved(raw, batch, BatchStatus.COMPLETED, completed=2)
            read_until(terminal, b"2 of 2")
            assert printing.stderr.readline() == "millrace: Redis is back\n"
            assert printing.stdout.readline() == "completed: 2 completed, 0 failed of 2\n"
            assert (drawing.wait(20), printing.wait(20)) == (0, 0)


def test_what_cannot_be_watched(redis_url: str) -> None:
    for url, words in ((redis_url, "there is no batch"), ("redis://127.0.0.1:1/0", "no Redis at")):
        process = watching(url, "status", "batch_none")
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err.count("\n")) == (1, "", 1)
        assert words in err
