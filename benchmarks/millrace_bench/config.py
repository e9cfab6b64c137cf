"""The one reader of the benchmarks' environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def peer_environ(first: Sequence[Path], *, inherit: bool, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """`environ`, else this process's environment, with `first` in front of Python's path.

    Without `inherit` they are all of it: what is on ours may be built for another Python.
    """
    environ = os.environ if environ is None else environ
    # Absolute: the process runs elsewhere.
    others = [os.path.abspath(entry) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    paths = [*(str(path.absolute()) for path in first), *(others if inherit else ())]
    return {**environ, "PYTHONPATH": os.pathsep.join(paths)}
