"""`millrace batch` as a shell sees it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bulk_parts import Batches, BulkThread, chat_line, written
from fake_worker import FakeWorker
from millrace import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("MILLRACE_REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["millrace", "batch", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_a_table_from_submit_to_its_end(redis_url: str, run: Run, bulk: BulkThread, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,text\n1,one\n2,two\n")
    system = tmp_path / "system.txt"
    system.write_text("be brief\n")
    with FakeWorker(redis_url):
        code, out, _ = run(
            "submit", str(source), "--output", str(tmp_path / "out"), "--column", "text", "--system-file", str(system),
            "--max-tokens", "5",
        )  # fmt: skip
        assert code == 0
        batch_id = out.strip()
        code, out, _ = run("status", batch_id, "--watch")
    assert code == 0
    assert "completed: 2 completed, 0 failed of 2" in out
    path = tmp_path / "out" / f"{batch_id}_output.jsonl"
    assert f"output: file://{path}" in out
    assert {json.loads(line)["custom_id"] for line in path.read_text().splitlines()} == {"2", "3"}
    assert batch_id[:20] in run("list")[1]
    assert json.loads(run("list", "--json")[1])[0]["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert run("cancel", batch_id)[1].strip() == "completed"
    code, _, err = run("resume", batch_id)
    assert (code, "there is nothing to resume" in err) == (1, True)


def test_a_file_that_is_wrong(redis_url: str, run: Run, bulk: BulkThread, tmp_path: Path) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a"), "{"])
    with FakeWorker(redis_url):
        batch_id = run("submit", source, "--output", str(tmp_path))[1].strip()
        code, out, _ = run("status", batch_id, "--watch")
    assert code == 1
    assert "line 2: This line is not parseable as valid JSON. [invalid_json_line]" in out


def test_what_cannot_be_submitted(run: Run, batches: Batches, tmp_path: Path) -> None:
    source = written(str(tmp_path / "in.jsonl"), [chat_line("a")])
    for args, words in (
        ((source, "--window", "8d"), "completion_window"),
        (("ftp://host/in.jsonl",), "no place for files"),
        (("s3://",), "names no bucket"),
        ((source, "--endpoint", "/v1/embeddings"), "endpoint must be one of"),
    ):
        code, _, err = run("submit", *args)
        assert (code, words in err) == (1, True), err
    table = written(str(tmp_path / "in.csv"), ["text", "hello"])
    for args, words in (
        ((source, "--system", "be brief"), "name the prompts' column"),
        ((table,), "a .csv file is a table"),
        (("gone.jsonl",), "there is no file gone.jsonl here"),
    ):
        code, _, err = run("submit", *args)
        assert (code, words in " ".join(err.replace("│", " ").split())) == (2, True), err
    assert run("status", "batch_none")[0] == 1


def test_cancel_before_anybody_looked(run: Run, batches: Batches, tmp_path: Path) -> None:
    batch_id = run("submit", written(str(tmp_path / "in.jsonl"), [chat_line("a")]))[1].strip()
    assert run("cancel", batch_id)[1].strip() == "cancelling"
    assert run("resume", batch_id)[1].strip() == "cancelling"
    assert "cancelling" in run("status", batch_id)[1]
