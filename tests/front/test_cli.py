from __future__ import annotations

import subprocess
import sys

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


def test_a_worker_without_redis_says_one_line() -> None:
    for url, reason in (
        ("redis://127.0.0.1:1/0", "cannot reach Redis at 127.0.0.1:1/0: "),
        ("nonsense:secret@host", "redis_url is no Redis URL "),
    ):
        run = subprocess.run(
            [sys.executable, "-m", "millrace_worker", "--redis-url", url], capture_output=True, text=True
        )
        assert run.returncode == 3
        assert run.stderr.startswith(f"millrace worker: {reason}")
        assert run.stderr.count("\n") == 1
        assert "secret" not in run.stderr
