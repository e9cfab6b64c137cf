"""Storage that is slow, refuses, breaks off or is full: nothing is lost, and what waits says why."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import msgspec
import pytest

from bulk_parts import Batches, BulkProcess, BulkThread, chat_line, outcome, written
from fake_worker import FakeWorker
from faulty_s3 import FaultyS3
from millrace.bulk import local_storage, s3_storage
from millrace.bulk.errors import StorageError
from millrace.bulk.settings import BulkSettings
from millrace.bulk.storage import storage_of
from millrace.bulk.store import View
from millrace_bench.bulk_chaos_parts import children
from millrace_schemas import Result
from millrace_schemas.batch import BatchError, BatchStatus
from servers import S3Server

SOON = BulkSettings(flush_seconds=0.2, turn=0.2, pause=0.2, lease=1.0)
LINES = [chat_line(f"r{n}", f"hello {n}") for n in range(300)]


def put(url: str, lines: list[str]) -> str:
    storage_of(url).write(url, "".join(line + "\n" for line in lines).encode())
    return url


def wait_for(what: str, found: Callable[[], Any], timeout: float = 30.0) -> Any:
    limit = time.monotonic() + timeout
    while not (value := found()):
        assert time.monotonic() < limit, f"no {what}"
        time.sleep(0.05)
    return value


def parts_of(server: S3Server, batch_id: str) -> list[Path]:
    """By os.walk, which does not mind that the server removes folders meanwhile."""
    folders = os.walk(server.directory)
    return [Path(at, name) for at, _, names in folders if Path(at).name == f"{batch_id}.parts" for name in names]


def assert_whole(view: View, lines: int = len(LINES)) -> None:
    assert view.batch.status is BatchStatus.COMPLETED, view
    assert view.problem is None
    output, errors = outcome(view)
    assert (len(output), len(errors)) == (lines, 0)


def test_faults_that_pass(redis_url: str, batches: Batches, faulty: FaultyS3) -> None:
    """All of them are met, and none of them is more than a delay."""
    source = put("s3://answers/passing.jsonl", LINES)
    faults = [
        faulty.fail("HEAD", "passing.jsonl", "SlowDown", 1),
        faulty.fail("GET", "passing.jsonl", "truncate", 2),
        faulty.fail("PUT", "-output.jsonl", "InternalError", 1),
        faulty.fail("PUT", "_output.jsonl", "reset", 1),
        faulty.fail("DELETE", ".parts", "delay", 2, 0.1),
    ]
    with BulkThread(redis_url, SOON), FakeWorker(redis_url):
        view = batches.ended(batches.make(source, "s3://answers/passing"))
    assert_whole(view)
    assert [fault.met for fault in faults] == [1, 2, 1, 1, 2]


@pytest.mark.parametrize("kind", ["AccessDenied", "NoSuchBucket"])
def test_a_part_that_cannot_be_written_for_a_while(
    redis_url: str, batches: Batches, faulty: FaultyS3, s3_env: S3Server, kind: str
) -> None:
    """Rights that are lost and given back, and a bucket that is."""
    source = put(f"s3://answers/{kind}.jsonl", LINES)
    faulty.fail("PUT", "-output.jsonl", kind)
    with BulkThread(redis_url, SOON), FakeWorker(redis_url) as worker:
        batch_id = batches.make(source, f"s3://answers/{kind}")
        problem = wait_for("problem", lambda: batches.view(batch_id).problem)
        assert kind in problem
        assert batches.view(batch_id).progress.ended == 0
        faulty.heal()
        view = batches.ended(batch_id)
    assert_whole(view)
    # What was answered is not asked for again.
    assert len(worker.finished) == len(LINES)
    assert not parts_of(s3_env, batch_id)


def test_a_joined_file_that_cannot_be_written_for_a_while(redis_url: str, batches: Batches, faulty: FaultyS3) -> None:
    source = put("s3://answers/joined.jsonl", LINES)
    faulty.fail("PUT", "_output.jsonl", "AccessDenied")
    with BulkThread(redis_url, SOON), FakeWorker(redis_url):
        batch_id = batches.make(source, "s3://answers/joined")
        wait_for("problem", lambda: batches.view(batch_id).problem)
        assert batches.view(batch_id).batch.status is BatchStatus.FINALIZING
        faulty.heal()
        view = batches.ended(batch_id)
    assert_whole(view)


def test_a_bucket_that_is_not_there(redis_url: str, batches: Batches, faulty: FaultyS3) -> None:
    source = put("s3://answers/there.jsonl", LINES)
    with BulkThread(redis_url, SOON), FakeWorker(redis_url):
        view = batches.ended(batches.make(source, "s3://not-there/out"))
    assert view.batch.status is BatchStatus.FAILED
    assert [error.code for error in view.batch.errors] == ["not_found"]


@pytest.mark.parametrize(("method", "part"), [("HEAD", "forbidden.jsonl"), ("PUT", "forbidden/")])
def test_rights_that_there_never_were(
    redis_url: str, batches: Batches, faulty: FaultyS3, method: str, part: str
) -> None:
    source = put("s3://answers/forbidden.jsonl", LINES)
    faulty.fail(method, part, "AccessDenied")
    with BulkThread(redis_url, SOON), FakeWorker(redis_url):
        view = batches.ended(batches.make(source, "s3://answers/forbidden/out"))
    assert view.batch.status is BatchStatus.FAILED
    assert [error.code for error in view.batch.errors] == ["permission_denied"]


def pieces(count: int) -> Iterator[bytes]:
    """More than one part of an upload."""
    return iter([b"x" * 1_000_000] * count)


def uploads(url: str) -> list[str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    found = boto3.client("s3").list_multipart_uploads(Bucket=bucket, Prefix=key)
    return [upload["UploadId"] for upload in found.get("Uploads", ())]


def test_an_upload_that_is_interrupted(faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_storage, "_PART", 5 * 1024 * 1024)
    storage, url = storage_of("s3://answers"), "s3://answers/interrupted.bin"
    refused = faulty.fail("PUT", "partNumber=2", "AccessDenied")
    with pytest.raises(StorageError):
        storage.join(url, pieces(12))
    assert refused.met == 1
    assert uploads(url) == []

    def broken() -> Iterator[bytes]:
        yield from pieces(12)
        raise StorageError("a part is gone")

    faulty.heal()
    with pytest.raises(StorageError, match="a part is gone"):
        storage.join(url, broken())
    assert uploads(url) == []
    with pytest.raises(StorageError) as missing:
        storage.open(url)
    assert missing.value.code == "not_found"


def test_uploads_of_processes_that_died_are_aborted(faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_storage, "_PART", 5 * 1024 * 1024)
    url = "s3://answers/died.bin"
    boto3.client("s3").create_multipart_upload(Bucket="answers", Key="died.bin")
    neighbour = boto3.client("s3").create_multipart_upload(Bucket="answers", Key="died.bin.other")["UploadId"]
    assert len(uploads(url)) == 2
    # That an abort fails hides nothing.
    faulty.fail("PUT", "partNumber=1", "AccessDenied", 1)
    faulty.fail("DELETE", "died.bin?uploadId", "AccessDenied", 2)
    with pytest.raises(StorageError, match="UploadPart"):
        storage_of(url).join(url, pieces(12))
    faulty.heal()
    assert storage_of(url).join(url, pieces(12)) == 12_000_000
    assert uploads(url) == [neighbour]


def test_a_full_disk(redis_url: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = [False]
    real = os.fsync

    def fsync(number: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    monkeypatch.setattr(local_storage.os, "fsync", fsync)
    source = written(str(tmp_path / "in.jsonl"), LINES)
    with FakeWorker(redis_url, hold=True) as worker, BulkThread(redis_url, SOON):
        batch_id = batches.make(source, str(tmp_path / "out"))
        wait_for("jobs", lambda: worker.taken)
        full[0] = True
        worker.release()
        assert "No space left" in wait_for("problem", lambda: batches.view(batch_id).problem)
        full[0] = False
        view = batches.ended(batch_id)
    assert_whole(view)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{batch_id}_output.jsonl"]
    assert len(worker.finished) == len(LINES)


def test_what_a_killed_process_left_of_a_file_goes_with_the_next_one(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/out.jsonl"
    (tmp_path / ".out.jsonl.abc.part").write_bytes(b"half")
    (tmp_path / ".out.jsonl2.abc.part").write_bytes(b"another's")
    assert storage_of(url).join(url, iter([b"a", b"b"])) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.jsonl2.abc.part", "out.jsonl"]


@pytest.mark.parametrize("slow", ["-output.jsonl", "_output.jsonl", "probe"])
def test_a_write_that_takes_longer_than_the_lease(
    redis_url: str, batches: Batches, faulty: FaultyS3, s3_env: S3Server, slow: str
) -> None:
    source = put("s3://answers/slow.jsonl", LINES)
    delayed = faulty.fail("PUT", slow, "delay", 1, 2.0)
    with BulkThread(redis_url, SOON), BulkThread(redis_url, SOON), FakeWorker(redis_url) as worker:
        batch_id = batches.make(source, "s3://answers/slow")
        view = batches.ended(batch_id)
    assert_whole(view)
    assert delayed.met == 1
    # Nobody else did the same in the meantime.
    assert len([path for method, path in faulty.requests if method == "PUT" and slow in path and batch_id in path]) == (
        len({path for method, path in faulty.requests if method == "PUT" and slow in path and batch_id in path})
    )
    assert len(worker.finished) == len(LINES)
    assert not parts_of(s3_env, batch_id)


def test_a_removal_that_takes_longer_than_the_lease(
    redis_url: str, batches: Batches, faulty: FaultyS3, s3_env: S3Server
) -> None:
    source = put("s3://answers/removal.jsonl", LINES)
    faulty.fail("DELETE", ".parts", "delay", 2, 1.5)
    with BulkThread(redis_url, SOON), BulkThread(redis_url, SOON), FakeWorker(redis_url):
        batch_id = batches.make(source, "s3://answers/removal")
        assert_whole(batches.ended(batch_id))
        wait_for("end of the parts", lambda: not parts_of(s3_env, batch_id))
        deletes = [path for method, path in faulty.requests if method == "DELETE" and batch_id in path]
    assert len(deletes) == len(set(deletes))


def test_a_part_that_arrives_after_the_end(
    redis_url: str, batches: Batches, faulty: FaultyS3, s3_env: S3Server, tmp_path: Path
) -> None:
    """Its writer slept, its lease was taken over, and the batch ended without it."""
    source = put("s3://answers/orphan.jsonl", LINES)
    held = faulty.fail("PUT", "-output.jsonl", "hold", 1)
    (tmp_path / "second").mkdir()
    with BulkProcess(redis_url, tmp_path) as first, FakeWorker(redis_url):
        batch_id = batches.make(source, "s3://answers/orphan")
        wait_for("write", lambda: held.met)
        turn = next(turn for rq in children(first.pid) for turn in children(rq) if os.getpgid(turn) == turn)
        os.kill(turn, signal.SIGSTOP)
        with BulkProcess(redis_url, tmp_path / "second"):
            view = batches.ended(batch_id)
            faulty.heal()
            wait_for("late part", lambda: held.passed)
            os.kill(turn, signal.SIGCONT)
            wait_for("end of the parts", lambda: not parts_of(s3_env, batch_id))
    assert_whole(view)


def test_rights_to_the_input_that_are_lost_and_given_back(redis_url: str, batches: Batches, faulty: FaultyS3) -> None:
    lines = [chat_line(f"r{n}") for n in range(1000)]
    source = put("s3://answers/rights.jsonl", lines)
    with FakeWorker(redis_url, hold=True) as worker, BulkThread(redis_url, SOON):
        batch_id = batches.make(source, "s3://answers/rights")
        wait_for("jobs", lambda: worker.taken)
        for method in ("HEAD", "GET"):
            faulty.fail(method, "rights.jsonl", "AccessDenied")
        problem = wait_for("problem", lambda: batches.view(batch_id).problem)
        assert "rights.jsonl" in problem
        faulty.heal()
        worker.release()
        view = batches.ended(batch_id)
    assert_whole(view, 1000)


def test_parts_that_cannot_be_removed_for_a_while(
    redis_url: str, batches: Batches, faulty: FaultyS3, s3_env: S3Server
) -> None:
    source = put("s3://answers/kept.jsonl", LINES)
    refused = faulty.fail("DELETE", ".parts", "AccessDenied")
    with BulkThread(redis_url, SOON), FakeWorker(redis_url):
        batch_id = batches.make(source, "s3://answers/kept")
        batches.ended(batch_id)
        wait_for("refusal", lambda: refused.met)
        faulty.heal()
        wait_for("end of the parts", lambda: not parts_of(s3_env, batch_id))
        wait_for("end of the problem", lambda: batches.view(batch_id).problem is None)
    assert_whole(batches.view(batch_id))


def test_an_error_that_nobody_expected(
    redis_url: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [True]
    real = local_storage.LocalStorage.write

    def write(self: local_storage.LocalStorage, url: str, data: bytes) -> None:
        if broken[0] and url.endswith("-output.jsonl"):
            raise ZeroDivisionError("nobody expected this")
        real(self, url, data)

    monkeypatch.setattr(local_storage.LocalStorage, "write", write)
    source = written(str(tmp_path / "in.jsonl"), LINES)
    with BulkThread(redis_url, SOON), FakeWorker(redis_url):
        batch_id = batches.make(source, str(tmp_path / "out"))
        assert wait_for("problem", lambda: batches.view(batch_id).problem)
        broken[0] = False
        view = batches.ended(batch_id)
    assert_whole(view)


def test_a_place_that_is_away_for_the_whole_window(
    redis_url: str, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that was not looked through does not wait for ever."""

    def write(self: local_storage.LocalStorage, url: str, data: bytes) -> None:
        raise StorageError("no room here")

    monkeypatch.setattr(local_storage.LocalStorage, "write", write)
    source = written(str(tmp_path / "in.jsonl"), LINES)
    with BulkThread(redis_url, SOON):
        view = batches.ended(batches.make(source, str(tmp_path / "out"), window="1s"))
    assert view.batch.status is BatchStatus.FAILED
    assert view.batch.errors == (BatchError("storage_failed", "the output cannot be written: no room here"),)


class S3Worker(FakeWorker):
    """Puts every result into S3, and a pointer to it into Redis, as workers do with --result-s3."""

    def _end(self, pipe: Any, job_id: str, result: Result, *, stream: bool) -> None:
        url = f"s3://answers/results/{job_id}.1.json"
        storage_of(url).write(url, msgspec.json.encode(result))
        super()._end(pipe, job_id, msgspec.structs.replace(result, choices=(), location=url), stream=stream)


def test_results_that_workers_put_into_s3(redis_url: str, batches: Batches, faulty: FaultyS3, tmp_path: Path) -> None:
    lines = LINES[:40]
    source = written(str(tmp_path / "in.jsonl"), lines)
    refused = faulty.fail("GET", "results/", "AccessDenied", 1)
    with BulkThread(redis_url, SOON), S3Worker(redis_url):
        view = batches.ended(batches.make(source, str(tmp_path / "out")))
    assert refused.met == 1
    assert_whole(view, len(lines))
    output, _ = outcome(view)
    answers = {name: line["response"]["body"]["choices"][0]["message"]["content"] for name, line in output.items()}
    assert answers == {f"r{n}": f"HELLO {n}" for n in range(len(lines))}
