"""infra/install.sh with a pip that only writes down what it is asked for: which torch, from where, under which pins."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

#: Stands for every python: makes .venv with itself in it, and logs pip's arguments to pip.log.
PYTHON = """#!/bin/bash
case "$*" in
    --version) echo "Python ${VERSION:-3.11.9}" ;;
    *version_info*) [[ ${VERSION:-3.11.9} != 3.9* ]] ;;
    *ensurepip*) [[ -z ${NO_VENV:-} ]] ;;
    *torch.cuda*) [[ -n ${HOST_TORCH:-} ]] ;;
    *"import torch"*) [[ -n ${HOST_TORCH:-} ]] ;;
    "-m venv"*) echo "$@" >>pip.log; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    "-m pip install"*)
        words=$*
        echo "${words##*--no-input }" >>pip.log
        [[ $* != *+cpu || $* == *--index-url* || -z ${NO_LOCAL_TORCH:-} ]] ;;
esac
"""


class Host:
    """A checkout with the script, on a machine with only what the script calls."""

    def __init__(self, directory: Path):
        self.root = directory / "checkout"
        self.bin = directory / "bin"
        (self.root / "infra").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / "infra" / "install.sh", self.root / "infra")
        shutil.copy(ROOT / "constraints.txt", self.root)
        for tool in ("bash", "cat", "cp", "dirname", "env", "grep", "mkdir"):
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool}"))
        self.add("uname", "#!/bin/bash\necho Linux\n")

    def add(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def install(self, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / "infra" / "install.sh")],
            env={"PATH": str(self.bin), **environ},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=30,
        )

    @property
    def calls(self) -> list[str]:
        return (self.root / "pip.log").read_text().splitlines()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.add("python3", PYTHON)
    return host


def test_without_a_gpu_the_cpu_build_comes_first(host: Host) -> None:
    assert host.install().returncode == 0
    assert host.calls == [
        "-m venv --clear .venv",
        f"--no-deps torch=={TORCH}+cpu",
        "-c constraints.txt -e .[dev]",
    ]


def test_the_cpu_build_comes_from_pytorch_where_pip_has_none(host: Host) -> None:
    assert host.install(NO_LOCAL_TORCH="1").returncode == 0
    assert host.calls[1:3] == [f"--no-deps torch=={TORCH}+cpu", f"--no-deps --index-url {CPU_INDEX} torch=={TORCH}+cpu"]


def test_with_a_gpu_torch_brings_its_own_triton(host: Host) -> None:
    host.add("nvidia-smi", "#!/bin/bash\n")
    assert host.install().returncode == 0
    assert host.calls == [
        "-m venv --clear .venv",
        f"torch=={TORCH}",
        "-c .venv/constraints.txt -e .[dev]",
    ]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    kept = (host.root / ".venv" / "constraints.txt").read_text().splitlines()
    assert [pin.split("==")[0] for pin in pins if pin not in kept] == ["torch", "triton"]


def test_a_torch_that_drives_the_gpu_already_is_kept(host: Host) -> None:
    host.add("nvidia-smi", "#!/bin/bash\n")
    assert host.install(HOST_TORCH="1").returncode == 0
    assert host.calls == ["-m venv --clear --system-site-packages .venv", "-c .venv/constraints.txt -e .[dev]"]


def test_macos_takes_the_plain_torch(host: Host) -> None:
    host.add("uname", "#!/bin/bash\necho Darwin\n")
    assert host.install().returncode == 0
    assert host.calls == ["-m venv --clear .venv", "-c constraints.txt -e .[dev]"]


def test_a_working_venv_is_kept_unless_another_python_is_asked_for(host: Host) -> None:
    host.add("python3.12", PYTHON)
    host.install()
    host.install()
    assert sum("-m venv" in call for call in host.calls) == 1
    assert host.install(PYTHON="python3.12", VERSION="3.12.1").returncode == 0
    assert sum("-m venv" in call for call in host.calls) == 1
    (host.root / ".venv" / "bin" / "python").write_text("#!/bin/bash\necho Python 3.11.9\n")
    assert host.install(PYTHON="python3.12", VERSION="3.12.1").returncode == 0
    assert sum("-m venv" in call for call in host.calls) == 2


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"VERSION": "3.9.1"}, "no Python 3.11 or newer on PATH"),
        ({"VERSION": "3.9.1", "PYTHON": "python3"}, "PYTHON=python3 is Python 3.9.1; Millrace needs Python 3.11"),
        ({"PYTHON": "nosuch"}, "PYTHON=nosuch does not run"),
        ({"NO_VENV": "1"}, "python3 cannot make virtual environments"),
    ],
)
def test_an_unusable_python_ends_in_one_clear_line(host: Host, environ: dict[str, str], words: str) -> None:
    done = host.install(**environ)
    assert done.returncode == 1
    assert done.stderr.startswith(f"install: {words}")
    assert done.stderr.count("\n") == 1
    assert not (host.root / ".venv").exists()
