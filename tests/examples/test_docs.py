"""The pages quote the examples as they are, and the test that they show passes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from backends import EXAMPLES, load
from millrace.testing import FakeMillrace

PAGE = EXAMPLES.parent / "docs" / "from-a-web-backend.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_quotations() -> None:
    sources = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")]
    quoted = [block for block in BLOCKS if "def test_" not in block]
    assert len(quoted) == len(BLOCKS) - 1
    for block in quoted:
        assert any(block in source for source in sources), block


def test_the_test_passes(tmp_path: Path) -> None:
    (example,) = [block for block in BLOCKS if "def test_" in block]
    (tmp_path / "test_example.py").write_text(example)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    paths = [str(EXAMPLES), *(p for p in sys.path if p)]
    environ = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "millrace_pytest"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert f"{example.count('def test_')} passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["fastapi_backend", "flask_backend", "django_backend"])
def test_a_page_each(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 105


def test_fastapi_with_a_fake() -> None:
    module = load("fastapi_backend")
    with FakeMillrace() as fake:
        client = fake.async_client()
        module.app.dependency_overrides[module.get_client] = lambda: client
        http = TestClient(module.app)
        job = http.post("/answers", json={"question": "hello"}, headers={"Idempotency-Key": "1"}).json()["id"]
        assert http.get(f"/answers/{job}").json() == {"state": "completed", "text": "hello"}
