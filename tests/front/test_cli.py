from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from millrace_worker.cli import app
from millrace_worker.config import SETTINGS


def test_help_describes_each_setting_and_tells_its_default() -> None:
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    for name, setting in SETTINGS.items():
        line = next(line for line in help_text.splitlines() if f"--{name.replace('_', '-')} " in line)
        assert setting.description in line
        assert ("[default: " in line) == (setting.default is not None)
    assert "[default: 8192]" in help_text
    assert "[default: 86400]" in help_text


def test_a_bad_setting_is_one_line_and_code_2() -> None:
    run = subprocess.run([sys.executable, "-m", "millrace_worker", "--lease", "0"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "millrace worker: --lease=0.0 must be at least 1 second\n"


def test_the_front_imports_no_torch() -> None:
    code = "import sys, millrace_worker.cli; sys.exit('torch' in sys.modules or 'boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("url", ["localhost:6379", "redis://:s3/cret@localhost", "redis://localhost/0?s3cret=1"])
def test_a_redis_url_that_is_none_is_one_line_and_code_2(url: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "millrace_worker", "--redis-url", url, "--log-level", "error"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.splitlines()
    assert line.startswith("millrace worker: redis_url must be redis://")
    assert "s3" not in line


def test_a_worker_without_redis_says_one_line() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "millrace_worker", "--redis-url", "redis://127.0.0.1:1/0", "--log-level", "error"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 3
    assert run.stderr.startswith("millrace worker: cannot reach Redis at 127.0.0.1:1/0: ")
    assert run.stderr.count("\n") == 1


def test_a_worker_without_its_packages_says_what_to_install() -> None:
    code = "import sys; sys.modules['transformers'] = None; from millrace_worker.cli import app; app()"
    run = subprocess.run([sys.executable, "-c", code, "--log-level", "error"], capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.splitlines()
    assert line.startswith("millrace worker: not all that it needs is installed (")
    assert line.endswith('; run: pip install "millrace[worker]"')
