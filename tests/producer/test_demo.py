"""The demo around a worker that is not the real one: everything but the model."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from fake_worker import FakeWorker, register
from millrace.demo import make_prompts, run_prompts
from millrace.errors import WorkerDied

#: A `python -m millrace_worker` whose answers are the prompts in capitals; TERM ends it.
FAKE = """
import pathlib, signal, sys, threading
from fake_worker import FakeWorker
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert flags["--model"] == flags["--served-model-name"] == "demo", flags
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
with FakeWorker(flags["--redis-url"], hold=HOLD):
    stop.wait()
pathlib.Path(__file__).with_name("stopped").touch()
"""


class Alive:
    def check(self, doing: str) -> None:
        pass

    def last_lines(self) -> str:
        return ""


class Dead(Alive):
    def check(self, doing: str) -> None:
        raise WorkerDied(f"ended {doing}", "its log")


def test_prompts_are_the_same_for_one_seed_and_cover_all_tasks() -> None:
    prompts = make_prompts(64, seed=3)
    assert prompts == make_prompts(64, seed=3)
    assert prompts != make_prompts(64, seed=4)
    assert len({p.system for p in prompts}) == 3
    assert len({p.task for p in prompts}) == 4
    assert len({p.user for p in prompts}) > 55


def test_every_prompt_is_answered_in_order(redis_url: str) -> None:
    out = io.StringIO()
    prompts = make_prompts(16, seed=0)
    with FakeWorker(redis_url) as worker:
        report = asyncio.run(run_prompts(redis_url, Alive(), prompts, Console(file=out)))
    answers = {a.prompt.user: a.result.text for a in report.answers}
    assert answers == {p.user: p.user.upper() for p in prompts}
    assert (len(worker.finished), report.failures) == (16, [])
    assert report.as_dict()["kv_waste"] == pytest.approx(0.05)
    assert "submitting 16 prompts under 3 system prompts" in out.getvalue()
    assert "16/16 finished" in out.getvalue()


def test_a_worker_that_never_gets_ready(redis_url: str) -> None:
    with pytest.raises(WorkerDied, match="ended before it was ready"):
        asyncio.run(run_prompts(redis_url, Dead(), make_prompts(4, 0), Console(quiet=True)))


def test_a_worker_that_dies_with_jobs_under_way(redis_url: str) -> None:
    register(redis_url)
    with pytest.raises(WorkerDied, match="ended with jobs under way"):
        asyncio.run(run_prompts(redis_url, Dead(), make_prompts(4, 0), Console(quiet=True)))


def start(directory: Path, worker: str, *flags: str) -> subprocess.Popen[str]:
    """`millrace demo` where `python -m millrace_worker` runs `worker`."""
    package = directory / "millrace_worker"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(worker)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-m", "millrace", "demo", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def assert_gone(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_command(tmp_path: Path) -> None:
    process = start(tmp_path, FAKE.replace("HOLD", "False"), "--jobs", "8", "--json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    found = json.loads(out)
    assert (found["jobs"], found["failed"], found["right"]) == (8, 0, 0)
    assert (tmp_path / "millrace_worker" / "stopped").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_nothing_is_left_after_a_signal(tmp_path: Path, number: int, code: int) -> None:
    process = start(tmp_path, FAKE.replace("HOLD", "True"), "--jobs", "8")
    assert process.stderr is not None
    while "submitting" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.3)
    pids = children(process.pid)
    assert len(pids) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert_gone(pids)
    assert (tmp_path / "millrace_worker" / "stopped").exists()


def test_a_worker_that_cannot_start(tmp_path: Path) -> None:
    process = start(tmp_path, "raise SystemExit('no such model')")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "millrace: the worker ended with code 1 before it was ready; its last lines:\nno such model" in err
    assert "Traceback" not in err


def test_a_failed_job_fails_the_command(tmp_path: Path) -> None:
    worker = FAKE.replace("HOLD", "False").replace(
        "flags =", "import fake_worker\nfake_worker.answer_of = lambda request: 'FAIL'\nflags ="
    )
    process = start(tmp_path, worker, "--jobs", "4")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "4 jobs, 4 failed, 0 exactly right" in out
    assert err.count("told to fail") == 4
