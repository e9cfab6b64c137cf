from __future__ import annotations

from pathlib import Path

import pytest

from millrace_worker.memory_limit import memory_limit

GIB = 2**30


def machine(root: Path, groups: str, limits: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for path, text in limits.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("groups", "limits"),
    [
        ("0::/\n", {"memory.max": str(GIB)}),
        (
            "0::/kubepods/pod1/worker\n",
            {"kubepods/pod1/memory.max": str(GIB), "kubepods/pod1/worker/memory.max": "max"},
        ),
        ("0::/outside/only\n", {"memory.max": str(GIB)}),
        (
            "9:name=systemd:/\n4:cpu,memory:/docker/a:b\n0::/\n",
            {"memory/docker/a:b/memory.limit_in_bytes": str(GIB), "memory/memory.limit_in_bytes": str(2**63 - 4096)},
        ),
    ],
    ids=["a container", "a group above it", "a path of outside", "version 1"],
)
def test_a_control_groups_limit_counts(tmp_path: Path, groups: str, limits: dict[str, str]) -> None:
    assert memory_limit(machine(tmp_path, groups, limits)) == GIB


def test_else_it_is_the_machines(tmp_path: Path) -> None:
    whole = memory_limit(tmp_path / "neither Linux nor a container")
    assert whole > GIB
    assert memory_limit(machine(tmp_path, "0::/\n3:cpuset:/\n", {"memory.max": "max", "x/memory.max": "1"})) == whole
    assert memory_limit() <= whole
