from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import structlog
from millrace_worker.config import WorkerConfig
from millrace_worker.logs import configure

configure(WorkerConfig(log_format={form!r}))
log = structlog.get_logger("x")

def fail(prompt):
    raise ValueError("what went wrong")

try:
    fail("a secret " + "prompt")
except ValueError:
    log.exception("failed", job="j1")
"""


@pytest.mark.parametrize("form", ["json", "console", "auto"])
def test_tracebacks_show_no_values(form: str) -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT.format(form=form)], capture_output=True, text=True, check=True)
    assert "what went wrong" in run.stderr
    assert "j1" in run.stderr
    assert "secret prompt" not in run.stderr
    assert run.stdout == ""
    assert run.stderr.startswith("{") is (form != "console")
