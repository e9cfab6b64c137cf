"""What a process and its descendants took, seen from outside through /proc."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_EVERY = 0.05


class ProcessTree:
    """While it is entered, the peak memory of each process under `pid` is followed; processes may come and go."""

    def __init__(self, pid: int):
        self._pid = pid
        self._peaks: dict[int, int] = {}
        self._cpu: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def peak_mib(self) -> float:
        """Of the largest one, by the kernel's own mark (VmHWM)."""
        return round(max(self._peaks.values(), default=0) / 1024, 1)

    @property
    def cpu_seconds(self) -> float:
        """Of all of them, user and system; what one did within the last look before its end is missed."""
        return sum(self._cpu.values())

    def __enter__(self) -> ProcessTree:
        self._look(self._pid)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look(self._pid)

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY):
            self._look(self._pid)

    def _look(self, pid: int) -> None:
        with suppress(OSError, StopIteration, ValueError, IndexError):
            status = Path(f"/proc/{pid}/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
            self._peaks[pid] = max(self._peaks.get(pid, 0), int(peak.split()[1]))
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self._cpu[pid] = (int(fields[11]) + int(fields[12])) / 100
            for task in Path(f"/proc/{pid}/task").iterdir():
                for child in (task / "children").read_text().split():
                    self._look(int(child))
