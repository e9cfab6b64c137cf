"""The commands as a shell sees them: output, exit codes, and one line for every expected error."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from fake_worker import FakeWorker, register
from millrace import Client, JobState, Request, WorkerInfo, cli, extra_commands
from millrace.embedded import free_port
from millrace_schemas import QueueKeys, decode, encode, new_job_id


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `millrace ...` in this process."""
    monkeypatch.setenv("MILLRACE_REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: str, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "argv", ["millrace", *args])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return Ended(0 if code is None else int(code), out, err)

    return call


def test_submit_prints_the_id(client: Client, run: Run, raw: redis.Redis, keys: QueueKeys, tmp_path: Path) -> None:
    found = run("submit", "hello")
    assert (found.code, found.err) == (0, "")
    assert client.state(found.out.strip()) == JobState.QUEUED
    system = tmp_path / "system.txt"
    system.write_text("be brief\n")
    flags = shlex.split(
        "--max-tokens 5 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --seed 7 --stop a --stop b --min-tokens 1 "
        "--presence-penalty 0.5 --frequency-penalty -0.5 --repetition-penalty 1.2 --logprobs 3 "
        "--logit-bias 5=-100 --logit-bias 7=0.5 "
        "--ignore-eos --lane batch --metadata user=7 --metadata x=a=b --deadline 60 --result-to s3://bucket/p --json"
    )
    found = run("submit", "-", "--system-file", str(system), *flags, stdin="hällo\n".encode())
    request = decode(raw.hget(keys.job(json.loads(found.out)["id"]), "request"), Request)
    assert [(m.role, m.content) for m in request.messages] == [("system", "be brief"), ("user", "hällo")]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.top_p) == (5, 0.5, 3, 0.9)
    assert (sampling.min_p, sampling.seed, sampling.stop, sampling.ignore_eos) == (0.1, 7, ("a", "b"), True)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert (sampling.repetition_penalty, sampling.logprobs) == (1.2, 3)
    assert sampling.logit_bias == {5: -100.0, 7: 0.5}
    assert (request.lane, request.metadata) == ("batch", {"user": "7", "x": "a=b"})
    assert (request.result_to, request.deadline is None) == ("s3://bucket/p", False)


def test_submit_and_wait(redis_url: str, run: Run) -> None:
    with FakeWorker(redis_url):
        assert run("submit", "hello", "--wait") == Ended(0, "HELLO\n", "")
        assert json.loads(run("submit", "hello", "--wait", "--json").out)["choices"][0]["text"] == "HELLO"
        assert run("submit", "hello", "--stream") == Ended(0, "HELLO\n", "")
        lines = run("submit", "hello", "--stream", "--json").out.splitlines()
        assert [json.loads(line)["type"] for line in lines] == ["started", "tokens", "tokens", "finished"]
        for flags in ((), ("--stream",)):
            found = run("submit", "fail", "--wait", *flags)
            assert found.code == 1
            assert found.err.startswith("millrace: demo-")
            assert found.err.endswith("told to fail [internal]\n")
        found = run("submit", "fail", "--wait", "--json")
        assert (found.code, json.loads(found.out)["error"]["message"]) == (1, "told to fail")


def test_a_prompt_that_was_not_pinned_is_told_beside_its_answer(
    redis_url: str, run: Run, raw: redis.Redis, keys: QueueKeys
) -> None:
    with FakeWorker(redis_url):
        assert run("submit", "hello", "--pin", "--wait", "--idempotency-key", "k") == Ended(0, "HELLO\n", "")
        job = run("submit", "hello", "--pin", "--idempotency-key", "k").out.strip()
        raw.hset(keys.job(job), "pin_problem", "it is shorter (5) than a block")
        for flags in ((), ("--json",)):
            found = run("submit", "hello", "--pin", "--wait", "--idempotency-key", "k", *flags)
            assert (found.code, found.err) == (0, "not pinned: it is shorter (5) than a block\n")


def test_one_key_makes_one_job(client: Client, run: Run) -> None:
    assert run("submit", "a", "--idempotency-key", "k").out == run("submit", "a", "--idempotency-key", "k").out


def test_get_and_cancel(redis_url: str, run: Run) -> None:
    with FakeWorker(redis_url) as worker, Client(redis_url) as client:
        job = client.submit("hello")
        assert run("get", job.id, "--wait", "10") == Ended(0, "HELLO\n", "")
        found = json.loads(run("get", job.id, "--json").out)
        assert (found["record"]["state"], found["result"]["choices"][0]["text"]) == ("completed", "HELLO")
        assert run("cancel", job.id) == Ended(0, "completed\n", "")
        worker.hold()
        job = client.submit("hello")
        found = run("get", job.id)
        assert (found.code, found.out, found.err) == (1, "", f"millrace: {job.id} has no result yet\n")
        found = run("get", job.id, "--wait", "0.05")
        assert (found.code, "no result after 0.05 s" in found.err) == (1, True)
        found = run("get", job.id, "--json")
        assert (found.code, json.loads(found.out)["result"]) == (1, None)


def test_cancel_of_a_queued_job(client: Client, run: Run) -> None:
    job = client.submit("a")
    assert json.loads(run("cancel", job.id, "--json").out) == {"id": job.id, "state": "cancelled"}
    found = run("get", job.id)
    assert (found.code, found.out) == (1, "")
    assert found.err == f"millrace: {job.id}: cancelled while it waited in the queue [cancelled]\n"
    assert run("get", job.id, "--json").code == 1


def test_models(redis_url: str, run: Run) -> None:
    assert json.loads(run("models", "--json").out) == []
    register(redis_url, "org/one", max_model_len=4096)
    assert json.loads(run("models", "--json").out)[0]["max_model_len"] == 4096
    assert "org/one" in run("models").out
    assert "4,096" in run("models").out


def test_queue_stats(redis_url: str, client: Client, run: Run, raw: redis.Redis, keys: QueueKeys) -> None:
    client.submit("a")
    client.submit_many([{"prompt": "a", "lane": "batch"}] * 2)
    raw.zadd(keys.delayed, {"x": 1})
    beat = WorkerInfo(name="w-1", model="demo", host="h", pid=1, device="cpu", started_at=1.0, beat_at=2.0, leased=3)
    raw.set(keys.worker("w-1"), encode(beat))
    raw.zadd(keys.workers, {"w-1": 2.0, "gone": 1.0})
    found = json.loads(run("queue", "stats", "--json").out)
    assert {lane: n["waiting"] for lane, n in found["lanes"].items()} == {"interactive": 1, "batch": 2}
    assert found["lanes"]["batch"]["oldest_waiting"] >= 0
    assert (found["delayed"], found["dead"], [w["name"] for w in found["workers"]]) == (1, 0, ["w-1"])
    raw.xgroup_create(keys.lanes["batch"], "workers", "0")
    raw.xreadgroup("workers", "w-1", {keys.lanes["batch"]: ">"}, count=1)
    batch = json.loads(run("queue", "stats", "--json").out)["lanes"]["batch"]
    assert (batch["waiting"], batch["in_flight"]) == (1, 1)
    text = run("queue", "stats", "--model", "demo").out
    assert "model demo: 1 delayed, 0 dead, 1 worker\n" in text
    assert "w-1" in text


def test_queue_stats_of_a_name_that_nobody_registered_say_so(redis_url: str, client: Client, run: Run) -> None:
    found = run("queue", "stats", "--model", "demmo", "--json")
    assert (found.code, json.loads(found.out)["workers"]) == (0, [])
    assert found.err == "no worker has registered model 'demmo'; registered: demo\n"
    assert run("queue", "stats").err == ""


def test_the_dead(client: Client, run: Run, raw: redis.Redis, keys: QueueKeys) -> None:
    job = client.submit("poison", lane="batch", deadline=2e9)
    fields = {"job": job.id, "lane": "batch", "code": "too_many_attempts", "reason": "killed 3 workers", "attempts": 3}
    entry = raw.xadd(keys.dead, fields).decode()
    other = raw.xadd(keys.dead, {"code": "undecodable", "reason": "no job field", "data": b"\xff\x00"}).decode()
    found = json.loads(run("queue", "dead", "--json").out)
    assert [d["id"] for d in found] == [other, entry]
    assert (found[1]["job"], found[1]["attempts"], found[0]["job"]) == (job.id, 3, None)
    assert "killed 3 workers" in run("queue", "dead").out
    assert len(json.loads(run("queue", "dead", "--count", "1", "--json").out)) == 1
    again = run("queue", "requeue", entry)
    assert again.code == 0
    request = decode(raw.hget(keys.job(again.out.strip()), "request"), Request)
    assert (request.prompt, request.lane, request.deadline) == ("poison", "batch", None)
    assert again.out.strip() != job.id
    for missing in (entry, other):
        assert run("queue", "requeue", missing).code == 1
    assert "no dead entry's id" in run("queue", "requeue", "x").err
    assert run("queue", "purge").code == 2
    assert run("queue", "purge", other, "--all").code == 2
    assert run("queue", "purge", other).out == "1\n"
    raw.xadd(keys.dead, fields)
    assert run("queue", "purge", "--all").out == "1\n"
    assert not raw.exists(keys.dead)


def test_what_the_dead_say_does_not_steer_the_terminal(
    client: Client, run: Run, raw: redis.Redis, keys: QueueKeys
) -> None:
    raw.xadd(keys.dead, {"code": "undecodable", "reason": "\x1b[2J[bold]loud[/bold]"})
    out = run("queue", "dead").out
    assert "\x1b" not in out
    assert "[bold]" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["submit", "a", "--top-p", "3"], "sampling.top_p must lie in (0, 1], not 3.0"),
        (["submit", "a", "--model", "nope"], "no worker has registered model 'nope'; registered: demo"),
        (["submit", "a", "--metadata", "x"], "metadata is KEY=VALUE, not 'x'"),
        (["submit", ""], "prompt is empty"),
        (["submit", "a", "--deadline", "-1"], "deadline: seconds from now (a timedelta) must be positive"),
        (["submit", "\udcff"], "prompt is not valid Unicode"),
        (["submit", "-"], "standard input is not UTF-8"),
        (["submit", "a", "--redis-url", "nonsense"], "is no Redis URL"),
        (["get", "nonsense"], "'nonsense' is not a job id"),
        (["get", new_job_id("demo")], "there is no job"),
        (["get", new_job_id("demo"), "--json"], "there is no job"),
        (["cancel", new_job_id("demo")], "there is no job"),
        (["submit", "a", "--wait", "--timeout", "0.05"], "has no result after 0.05 s; the job goes on"),
    ],
)
def test_expected_errors_are_one_line(client: Client, run: Run, args: list[str], words: str) -> None:
    found = run(*args, stdin=b"\xff\xfe")
    assert found.code == 1
    assert words in found.err
    assert found.err.startswith("millrace: ")
    assert found.err.count("\n") == 1
    assert found.out == ""


@pytest.mark.parametrize(
    "args",
    [["nonsense"], ["submit"], ["submit", "a", "--top-k", "x"], ["submit", "a", "--lane", "fast"], ["--nonsense"],
     ["submit", "a", "--system", "x", "--system-file", __file__], ["get", "a", "--wait", "-1"]],
)  # fmt: skip
def test_wrong_usage_is_code_2(run: Run, args: list[str]) -> None:
    found = run(*args)
    assert (found.code, found.out) == (2, "")
    assert "Traceback" not in found.err


def test_version_and_help(run: Run) -> None:
    assert run("--version").out.startswith("millrace")
    text = run("--help").out
    for name in ("submit", "get", "cancel", "models", "queue", "demo"):
        assert name in text


def shell(*args: str, path: Path | None = None, url: str = "", code: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `python -m millrace`, or `code`, in a process of its own, with `path` in front of the import path."""
    environ = {**os.environ, "MILLRACE_REDIS_URL": url, "PYTHONPATH": os.pathsep.join([str(path or "."), *sys.path])}
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "millrace", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=60)


def test_a_process_without_redis() -> None:
    found = shell("submit", "a", url=f"redis://127.0.0.1:{free_port()}/0")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("millrace: no Redis at redis://127.0.0.1:")
    assert found.stderr.count("\n") == 1


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    """A directory with two commands of another package: one works, one lacks a dependency."""
    info = tmp_path / "extra_commands-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-commands\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[millrace.commands]\ngood = extra_good:app\nother = extra_bad:app\n")
    (tmp_path / "extra_good.py").write_text(
        "import typer\nprint('imported')\napp = typer.Typer()\n\n@app.command()\ndef good(n: int = 1) -> None:\n"
        "    '''Doubles a number.'''\n    print(2 * n)\n"
    )
    (tmp_path / "extra_bad.py").write_text("import a_package_that_is_not_there\n")
    return tmp_path


def test_commands_of_other_packages(extra: Path) -> None:
    assert shell("good", "--n", "4", path=extra).stdout == "imported\n8\n"
    overview = shell("--help", path=extra)
    assert overview.returncode == 0
    assert "good" in overview.stdout
    assert "other" in overview.stdout
    assert "imported" not in overview.stdout
    assert "Doubles a number." in shell("good", "--help", path=extra).stdout
    assert shell("good", "--n", "x", path=extra).returncode == 2
    missing = shell("other", path=extra)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == (
        "millrace: `millrace other` is not installed (No module named 'a_package_that_is_not_there'); "
        'run: pip install "millrace[other]"\n'
    )


def test_our_own_commands_need_no_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra_commands, "entry_points", lambda group: ())
    assert shlex.join(extra_commands._others()) == "worker bench"
    for command in extra_commands._others().values():
        assert callable(command.load())


def test_submit_imports_neither_torch_nor_other_commands(extra: Path, client: Client, redis_url: str) -> None:
    code = (
        "import sys, millrace.cli\nsys.argv = ['millrace', 'submit', 'a']\n"
        "try:\n    millrace.cli.main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "print({'torch', 'transformers', 'boto3', 'extra_good', 'millrace_worker'} & set(sys.modules))\n"
    )
    found = shell(code=code, path=extra, url=redis_url)
    assert found.stdout.splitlines()[-1] == "set()", found.stderr
