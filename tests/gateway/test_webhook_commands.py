"""`millrace gateway` delivers, or leaves it to others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from typer.testing import CliRunner

from backends import until
from fake_worker import FakeWorker
from millrace import Client, InvalidRequest
from millrace.cli import app
from receiver import Receiver


@contextmanager
def gateway(redis_url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "millrace", "gateway", "--port", "0", "--redis-url", redis_url, *arguments],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        assert process.stderr.readline().startswith("millrace gateway: http")
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_private_addresses_are_opened_by_name_or_network(redis_url: str) -> None:
    allow = ("--webhook-allow", "127.0.0.0/30", "--webhook-allow", "localhost")
    with Receiver() as receiver, FakeWorker(redis_url), Client(redis_url) as client:
        with gateway(redis_url, "--no-webhooks"), gateway(redis_url, *allow) as process:
            jobs = [
                client.submit("a", webhook=f"http://{host}:{receiver.port}/")
                for host in ("127.0.0.1", "localhost", "127.0.0.4")
            ]
            receiver.wait(2)
            until(lambda: [job.record().webhook.state for job in jobs] == ["delivered", "delivered", "retrying"])
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=30)
            assert (process.returncode, rest) == (128 + signal.SIGTERM, "")
        with gateway(redis_url, "--no-webhooks"):
            waits = client.submit("a", webhook=receiver.url)
            waits.result(timeout=10)
        assert waits.record().webhook.state == "pending"
        assert len(receiver.calls) == 2


def test_what_cannot_be_allowed(redis_url: str) -> None:
    done = CliRunner().invoke(
        app, ["gateway", "--port", "0", "--redis-url", redis_url, "--webhook-allow", "10.0.0.1/8"]
    )
    assert isinstance(done.exception, InvalidRequest)
