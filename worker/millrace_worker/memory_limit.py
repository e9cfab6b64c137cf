"""How much memory a process of this machine, or of its container, may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: Where the controller of memory is mounted, and its file with the limit, by version of control groups.
#: https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
_UNIFIED = "sys/fs/cgroup", "memory.max"
_LEGACY = "sys/fs/cgroup/memory", "memory.limit_in_bytes"


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes: the machine's memory, or the least that a control group around this process allows."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = _LEGACY if controllers else _UNIFIED
        group = PurePosixPath(path)
        # A container may see the path that its group has outside; what is mounted then is the group itself.
        for directory in (group, *group.parents):
            try:
                limit = (root / mount / directory.relative_to("/") / name).read_text().strip()
            except OSError:
                continue
            if limit.isdecimal():  # not "max"
                yield int(limit)
