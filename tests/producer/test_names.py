from __future__ import annotations

import subprocess
import sys

import millrace


def test_public_names_are_sorted_and_there() -> None:
    assert millrace.__all__ == sorted(millrace.__all__)
    assert all(hasattr(millrace, name) for name in millrace.__all__)
    for name in ("AsyncClient", "Client", "Sampling", "Message", "Request", "Result", "Job", "AsyncJob", "JobFailed"):
        assert name in millrace.__all__


def test_the_client_imports_neither_torch_nor_the_worker() -> None:
    code = (
        "import sys, millrace.cli\n"
        "heavy = {'torch', 'triton', 'transformers', 'boto3', 'millrace_worker', 'millrace_kernels'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
