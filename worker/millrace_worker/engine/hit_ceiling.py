"""What share of all block lookups any prefix cache could answer: all but the first of each block."""

from __future__ import annotations

import numpy as np

#: Registers, as a power of two: 16,384 of a byte each give the number of distinct names within about 1 %.
_BITS = 14
_COUNT = 1 << _BITS
_REST = 64 - _BITS
_ALPHA = 0.7213 / (1 + 1.079 / _COUNT)
#: Names are counted so many at a time.
_TOGETHER = 4096


class HitCeiling:
    """Counts names that are looked up, and how many different ones those are, in memory that does not grow.

    A HyperLogLog: of names that are uniformly random bytes (digests), the longest run of leading zeros tells how many
    there were, and registers by the first bits average that.
    """

    def __init__(self) -> None:
        self.lookups = 0
        self._registers = np.zeros(_COUNT, dtype=np.uint8)
        self._new: list[bytes] = []

    def add(self, names: list[bytes]) -> None:
        """Names of at least 8 bytes."""
        self.lookups += len(names)
        self._new += names
        if len(self._new) >= _TOGETHER:
            self._count()

    @property
    def distinct(self) -> int:
        """About how many different names there were."""
        self._count()
        registers = self._registers
        estimate = _ALPHA * _COUNT**2 / np.ldexp(1.0, -registers.astype(np.int64)).sum()
        empty = _COUNT - int(np.count_nonzero(registers))
        if estimate <= 2.5 * _COUNT and empty:
            estimate = _COUNT * np.log(_COUNT / empty)
        return min(self.lookups, round(float(estimate)))

    def _count(self) -> None:
        if not self._new:
            return
        words = np.frombuffer(b"".join([name[:8] for name in self._new]), dtype="<u8")
        self._new = []
        # Exponents of floats are lengths in bits, exactly: what is left has fewer than 53.
        lengths = np.frexp((words >> np.uint64(_BITS)).astype(np.float64))[1]
        ranks = (_REST + 1 - lengths).astype(np.uint8)
        np.maximum.at(self._registers, (words % np.uint64(_COUNT)).astype(np.int64), ranks)
