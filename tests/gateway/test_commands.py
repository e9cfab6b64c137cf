"""`millrace gateway` and `millrace up` as processes."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import pytest
from typer.testing import CliRunner

from fake_worker import FakeWorker
from key_maker import KeyMaker
from millrace import Client, MillraceError
from millrace.cli import app
from millrace.cli_gateway import _settings
from millrace.embedded import free_port
from millrace.gateway.server import CannotListen, is_loopback, listen
from millrace.up import _redis

_ROOT = Path(__file__).resolve().parents[2]
_PATHS = os.pathsep.join(str(_ROOT / part) for part in ("schemas", "kernels", "producer", "worker"))


@contextmanager
def millrace(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "millrace", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": _PATHS},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def run(*arguments: str, path: str = _PATHS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "millrace", *arguments],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_gateway_serves_until_a_signal(redis_url: str, number: int) -> None:
    with FakeWorker(redis_url), millrace("gateway", "--port", "0", "--redis-url", redis_url) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        url = re.fullmatch(r"millrace gateway: (http://127\.0\.0\.1:\d+/v1)\n", line)
        assert url, line
        with openai.OpenAI(base_url=url[1], api_key="none") as ai:
            answer = ai.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hello"}])
        assert answer.choices[0].message.content == "HELLO"
        process.send_signal(number)
        _, rest = process.communicate(timeout=30)
    assert rest == ""
    assert process.returncode == (0 if number == signal.SIGINT else 128 + number)


def test_a_gateway_that_stops_does_not_cancel_jobs(redis_url: str) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
    with FakeWorker(redis_url, hold=True) as worker:
        with millrace("gateway", "--port", "0", "--redis-url", redis_url) as process, ThreadPoolExecutor(1) as pool:
            assert process.stderr is not None
            url = process.stderr.readline().split()[-1]
            asking = pool.submit(httpx2.post, f"{url}/chat/completions", json=body, timeout=30)
            while not worker.taken:
                time.sleep(0.02)
            process.terminate()
            process.wait(30)
            assert isinstance(asking.exception(), httpx2.TransportError) or asking.result().status_code >= 500
        worker.release()
        with Client(redis_url) as client:
            assert client.get(worker.taken[0]).result(timeout=20).text == "HELLO"


def test_others_are_not_let_in_by_accident(redis_url: str) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7"):
        refused = CliRunner().invoke(app, ["gateway", "--host", host, "--port", "0", "--redis-url", redis_url])
        assert isinstance(refused.exception, MillraceError)
        assert "`millrace keys create" in str(refused.exception)
        assert "--allow-open" in str(refused.exception)
    with millrace("gateway", "--host", "0.0.0.0", "--port", "0", "--allow-open", "--redis-url", redis_url) as process:
        assert process.stderr is not None
        port = process.stderr.readline().rsplit(":", 1)[1].split("/")[0]
        assert httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


def test_others_are_let_in_with_a_key(redis_url: str) -> None:
    headers = KeyMaker(redis_url).headers()
    with millrace("gateway", "--host", "0.0.0.0", "--port", "0", "--redis-url", redis_url) as process:
        assert process.stderr is not None
        port = process.stderr.readline().rsplit(":", 1)[1].split("/")[0]
        url = f"http://127.0.0.1:{port}/v1/models"
        assert httpx2.get(url).status_code == 401
        assert httpx2.get(url, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--require-keys", "there is none in this Redis; make one with `millrace keys create"),
        ("--require-keys --allow-open", "say one of them"),
        ("--allow-host gateway", "--allow-host narrows --allow-open"),
        ("--cors-origin *", "name the origins, or say --require-keys"),
        ("--cors-origin https://a.example --cors-origin a.example", "is an origin like https://app.example.com"),
    ],
)
def test_flags_that_cannot_be(redis_url: str, flags: str, words: str) -> None:
    refused = CliRunner().invoke(app, ["gateway", *flags.split(), "--port", "0", "--redis-url", redis_url])
    assert isinstance(refused.exception, MillraceError)
    assert words in str(refused.exception)


def test_what_flags_mean() -> None:
    def settings(host: str, *, keys: bool = False, allow_open: bool = False) -> tuple[bool, bool]:
        made = _settings(host, keys, allow_open, ("https://a.example",))
        assert made.cors_origins == ("https://a.example",)
        return made.require_keys, made.allowed_hosts is not None

    assert settings("127.0.0.1") == (False, True)
    assert settings("127.0.0.1", keys=True) == (True, False)
    assert settings("127.0.0.1", allow_open=True) == (False, False)
    assert settings("0.0.0.0") == (True, False)
    assert settings("0.0.0.0", allow_open=True) == (False, False)
    assert _settings("0.0.0.0", False, False, ("*",)).require_keys
    named = _settings("0.0.0.0", False, True, (), ("Gateway",))
    assert not named.require_keys
    assert named.allowed_hosts == {"localhost", "127.0.0.1", "[::1]", "0.0.0.0", "gateway"}


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""))


def test_a_port_in_use() -> None:
    port = free_port()
    message = f"port {port} on 127.0.0.1 is in use; choose another with --port"
    with listen("127.0.0.1", port):
        refused = run("up", "--port", str(port))
        gateway = CliRunner().invoke(app, ["gateway", "--port", str(port)])
    assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", f"millrace: {message}\n")
    assert str(gateway.exception) == message


def test_an_address_of_another_machine() -> None:
    with pytest.raises(CannotListen, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('No module named uvicorn')\n")
    missing = run("gateway", path=f"{tmp_path}{os.pathsep}{_PATHS}")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == (
        "millrace: `millrace gateway` is not installed (No module named uvicorn); "
        'run: pip install "millrace[gateway]"\n'
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_up() -> None:
    """Starts everything, answers the line that it prints, and leaves nothing behind."""
    with millrace("up", "--port", "0", "--redis-port", "0") as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 90)[0], "it was not ready in time"
        line = process.stdout.readline()
        assert line.startswith("curl http://127.0.0.1:")
        started = children(process.pid)
        # Redis, the worker and the bulk worker.
        assert len(started) == 3
        answer = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=True)
        said = json.loads(answer.stdout)
        assert said["choices"][0]["message"]["content"]
        assert said["choices"][0]["finish_reason"] == "stop"
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest.splitlines()[-1] == "stopped"
    limit = time.monotonic() + 10
    while any(alive(pid) for pid in started):
        assert time.monotonic() < limit, "something was left behind"
        time.sleep(0.1)


def test_the_private_redis_has_the_port_that_clients_expect_unless_it_is_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    with _redis(None, port) as url:
        assert url == f"redis://127.0.0.1:{port}/0"
        with _redis(None, port) as another:
            assert another != url
    assert f"port {port} is in use" in capsys.readouterr().err


def test_up_ends_when_its_worker_does(redis_url: str) -> None:
    ended = run("up", "--port", "0", "--redis-url", redis_url, "--model", "/no/such/model")
    assert ended.returncode == 1
    assert "the worker ended with code 2 before it was ready" in ended.stderr
    assert "/no/such/model" in ended.stderr
