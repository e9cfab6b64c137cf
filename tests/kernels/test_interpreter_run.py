"""The kernels themselves on a machine without a GPU: these tests again, in a process of Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_cases import KERNELS

#: Seconds: it takes two minutes where nothing else runs, and some machines have one core for all tests.
_TIMEOUT = 600


@pytest.mark.interpret
@pytest.mark.timeout(_TIMEOUT + 20)
@pytest.mark.skipif(KERNELS, reason="the kernels run in this process")
def test_the_kernels_pass_under_the_interpreter() -> None:
    """TRITON_INTERPRET counts when a kernel is decorated, so it needs a fresh process."""
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(here), "-q", "-p", "no:cacheprovider", "-c", str(here / "pytest.ini")],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
