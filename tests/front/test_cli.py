from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from typer.testing import CliRunner

from millrace_worker.cli import app
from millrace_worker.config import EngineConfig, StreamConfig, WorkerConfig


def test_there_is_a_flag_for_each_setting() -> None:
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    for struct in (EngineConfig, StreamConfig, WorkerConfig):
        for field in msgspec.structs.fields(struct):
            if field.name not in ("engine", "stream"):
                assert f"--{field.name.replace('_', '-')} " in help_text


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
