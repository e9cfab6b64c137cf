"""/v1/files has limits of its own: a file may be far larger and slower than any other body, and costs no memory."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from fake_worker import register
from gateway_server import GatewayServer
from millrace.gateway import GatewaySettings

MIB = 1024 * 1024
BOUNDARY = "0123456789abcdef"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
HEAD = (
    f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


def form(blocks: int, block: bytes) -> Iterator[bytes]:
    yield HEAD
    for _ in range(blocks):
        yield block
    yield TAIL


def peak_bytes() -> int:
    """The most memory that this process, which is the gateway's and the client's, has held since `forget_peak`."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def test_a_large_file_arrives_and_costs_no_memory(redis_url: str, tmp_path: Path) -> None:
    """Larger than eight of the longest other bodies."""
    register(redis_url)
    block = (json.dumps({"custom_id": "a", "fill": "x" * 1000}) + "\n").encode() * 1024
    blocks = 150 * MIB // len(block)
    with GatewayServer(redis_url, GatewaySettings(files=f"file://{tmp_path}/files")) as gateway:
        forget_peak()
        before = peak_bytes()
        answer = httpx2.post(f"{gateway.url}/v1/files", headers=FORM, content=form(blocks, block), timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json()["bytes"] == blocks * len(block) > 8 * 16 * MIB + MIB
        assert peak_bytes() - before < 48 * MIB
    (kept,) = (tmp_path / "files").iterdir()
    assert kept.stat().st_size == blocks * len(block)


@pytest.fixture
def strict(redis_url: str, tmp_path: Path) -> Iterator[GatewayServer]:
    """Other bodies must be short and quick."""
    register(redis_url)
    settings = GatewaySettings(
        files=f"file://{tmp_path}/files",
        body_timeout=0.2,
        upload_timeout=20,
        max_body_bytes=1000,
        max_file_bytes=5 * MIB,
    )
    with GatewayServer(redis_url, settings) as server:
        yield server


def test_a_slow_file_may_take_the_time_of_files(strict: GatewayServer) -> None:
    def slow() -> Iterator[bytes]:
        for piece in form(4, b"{}\n"):
            yield piece
            # Longer in all than another body may take, and than the sweep's second.
            time.sleep(0.5)

    answer = httpx2.post(f"{strict.url}/v1/files", headers=FORM, content=slow(), timeout=30)
    assert (answer.status_code, answer.json().get("bytes")) == (200, 12), answer.text


def test_a_file_that_is_too_long_is_told_so(strict: GatewayServer) -> None:
    answer = httpx2.post(f"{strict.url}/v1/files", headers=FORM, content=form(6, b"x" * MIB), timeout=30)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_a_disk_that_is_full_is_told(strict: GatewayServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    answer = httpx2.post(f"{strict.url}/v1/files", headers=FORM, content=form(2, b"{}\n"), timeout=30)
    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "insufficient_storage"
    assert "TMPDIR" in answer.json()["error"]["message"]


def test_other_bodies_keep_their_limits(strict: GatewayServer) -> None:
    answer = httpx2.post(f"{strict.url}/v1/jobs", json={"prompt": "x" * 2000})
    assert answer.status_code == 413
    assert cut(strict, "/v1/jobs", "application/json")


def test_what_is_left_of_a_refused_file_is_not_waited_for(strict: GatewayServer) -> None:
    """It is no form, which is said at once; the rest of it has the time of other bodies."""
    assert cut(strict, "/v1/files", "text/plain")


def cut(gateway: GatewayServer, path: str, kind: str) -> bool:
    """Whether a body that never ends is cut off before a file's time is over."""
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(
            f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {kind}\r\ncontent-length: 900\r\n\r\n{{".encode()
        )
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
    return True
