"""The wheel: built for real, without the network, and holding what the folders hold."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "millrace": ROOT / "producer" / "millrace",
    "millrace_bench": ROOT / "benchmarks" / "millrace_bench",
    "millrace_kernels": ROOT / "kernels" / "millrace_kernels",
    "millrace_schemas": ROOT / "schemas" / "millrace_schemas",
    "millrace_worker": ROOT / "worker" / "millrace_worker",
}
#: Modules outside the packages.
MODULES = {"millrace_pytest.py"}
DEMO_MODEL = "millrace_worker/demo_model/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def files_of(package: str) -> set[str]:
    folder = PACKAGES[package]
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_whole(wheel: zipfile.ZipFile, package: str) -> None:
    packed = {name for name in wheel.namelist() if name.startswith(f"{package}/") and not name.startswith(DEMO_MODEL)}
    assert packed == files_of(package)
    assert f"{package}/__init__.py" in packed
    assert f"{package}/py.typed" in packed


def test_the_scripts_and_the_demo_model_are_in(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    scripts = {f"{p}/{f.relative_to(d).as_posix()}" for p, d in PACKAGES.items() for f in d.rglob("*.lua")}
    assert scripts
    assert scripts <= names
    assert {DEMO_MODEL + file for file in ("config.json", "model.safetensors", "tokenizer.json")} <= names


def test_nothing_else_is_in(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/", 1)[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {*PACKAGES, *MODULES}


def test_commands_plugin_and_licence_are_declared(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/", 1)[0] for name in wheel.namelist() if ".dist-info/" in name}
    points = configparser.ConfigParser()
    points.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert points["console_scripts"]["millrace"] == "millrace.cli:main"
    assert set(points["millrace.commands"]) == {"worker", "bench"}
    assert dict(points["pytest11"]) == {"millrace_pytest": "millrace_pytest"}
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")
