"""Our folder `kernels/` must not pass for Hugging Face's package of that name, which transformers imports.

transformers looks for `kernels` on the path; started from the repository root, it finds our folder there. The folder
has no __init__.py, so that an installed `kernels` wins and an absent one stays absent.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = "from transformers import AutoModelForCausalLM; from transformers.integrations import hub_kernels"


@pytest.mark.parametrize("how", [["-c"], ["-m", "timeit", "-n1", "-r1"]], ids=["python -c", "python -m"])
def test_transformers_imports_from_the_repository_root(how: list[str]) -> None:
    done = subprocess.run([sys.executable, *how, IMPORTS], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_an_installed_package_of_that_name_wins(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("layers = 'theirs'\n")
    command = f"import sys; sys.path.append({str(tmp_path)!r}); import kernels; assert kernels.layers == 'theirs'"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["benchmarks", "kernels", "producer", "schemas", "worker"])
def test_component_folders_are_no_packages(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()
