"""How often names were seen, roughly, in memory that does not grow."""

from __future__ import annotations

import numpy as np

_ROWS, _WIDTH = 4, 1 << 16
#: After so many names all counts are halved, so that what was seen once, long ago, does not count for ever.
_PERIOD = _WIDTH // 2
_MOST = 255


class FrequencySketch:
    """A count-min sketch over names of at least 16 uniformly random bytes: counts may be too high, rarely."""

    def __init__(self) -> None:
        self._counts = np.zeros((_ROWS, _WIDTH), dtype=np.uint8)
        self._added = 0

    def add(self, names: list[bytes]) -> np.ndarray:
        """How often each of these distinct names was seen, this time included; [N]."""
        if not names:
            return np.zeros(0, dtype=np.int64)
        self._added += len(names)
        if self._added > _PERIOD:
            self._added //= 2
            self._counts >>= 1
        at = self._places(names)
        counts = self._counts[np.arange(_ROWS), at].min(axis=1).astype(np.int64) + 1
        # Only as far as the least count asks for it: fewer names that share a place are counted too high.
        raised = np.minimum(counts, _MOST).astype(np.uint8)
        for row in range(_ROWS):
            np.maximum.at(self._counts[row], at[:, row], raised)
        return counts

    def counts(self, names: list[bytes]) -> np.ndarray:
        """How often each was seen; [N]."""
        if not names:
            return np.zeros(0, dtype=np.int64)
        return self._counts[np.arange(_ROWS), self._places(names)].min(axis=1).astype(np.int64)

    @staticmethod
    def _places(names: list[bytes]) -> np.ndarray:
        words = np.frombuffer(b"".join(name[: 4 * _ROWS] for name in names), dtype="<u4")
        return (words % _WIDTH).reshape(len(names), _ROWS)
