"""Where a figure was measured: a figure without this is not a figure."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe_host() -> dict[str, str]:
    """Processor, load, versions and commit, for what needs no device."""
    found = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load_average": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "commit": _commit(),
    }
    return found | _versions("redis", "hiredis", "uvicorn", "httptools", "uvloop", "starlette", "millrace")


def describe(commit: str | None = None) -> dict[str, str]:
    """Device, driver, versions and commit (`commit` where there is no git), for people and programs.

    It takes no memory of the device.
    """
    import torch

    found = _nvidia() or {"device": _processor(), "cores": str(len(os.sched_getaffinity(0)))}
    found |= {
        "load_average": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "commit": commit or _commit(),
    }
    return found | _versions("triton", "transformers", "redis", "millrace")


def _nvidia() -> dict[str, str]:
    """The first NVIDIA device, its driver and its memory; nothing where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        name, driver, memory = (word.strip() for word in done.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}
    return {"device": name, "driver": driver, "memory": memory}


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    """Linux's name of it; platform's elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """The checkout's commit, with a + when files differ from it; "unknown" outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
