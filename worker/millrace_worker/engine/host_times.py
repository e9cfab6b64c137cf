"""Where the host's time goes: seconds by phase of a step, from timers that are always on."""

from __future__ import annotations

import time

import msgspec


class HostTimes(msgspec.Struct, frozen=True):
    """Seconds since the engine's start, by phase of its steps."""

    schedule: float = 0.0
    #: Arrays from what was scheduled.
    inputs: float = 0.0
    #: Sending them and starting the model; on the CPU the model runs here.
    launch: float = 0.0
    #: For the device.
    wait: float = 0.0
    #: Booking the tokens of a step that has run.
    complete: float = 0.0
    #: Counts for the front, and the output itself without its encoding.
    report: float = 0.0

    def since(self, earlier: HostTimes) -> HostTimes:
        """What was added after `earlier`."""
        return HostTimes(*(getattr(self, name) - getattr(earlier, name) for name in self.__struct_fields__))


class HostClock:
    """Adds the time since the last call to a phase. A call costs about 0.15 us."""

    def __init__(self) -> None:
        self._spent = dict.fromkeys(HostTimes.__struct_fields__, 0)
        self._last = 0

    def start(self) -> None:
        """A step begins, or goes on; what lies before it belongs to no phase."""
        self._last = time.perf_counter_ns()

    def lap(self, phase: str) -> None:
        """The phase ends that began with the last call."""
        now = time.perf_counter_ns()
        self._spent[phase] += now - self._last
        self._last = now

    @property
    def times(self) -> HostTimes:
        """All laps so far."""
        return HostTimes(**{phase: spent / 1e9 for phase, spent in self._spent.items()})
