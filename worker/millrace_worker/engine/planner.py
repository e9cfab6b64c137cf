"""Where every plan of decode attention is made, and what the plans save is counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from millrace_kernels import PlanShape, SharedReads, SharedRun, plan_decode


class Planner:
    """Makes the plans of steps, whichever way these are launched. On a CPU attention has none, and nothing counts."""

    def __init__(self) -> None:
        self._reads = SharedReads()

    def plan(
        self, context_lens: np.ndarray, lines: np.ndarray, shape: PlanShape, runs: Sequence[SharedRun]
    ) -> dict[str, np.ndarray]:
        """See `plan_decode`; the runs are left out where the shape takes none."""
        plan = plan_decode(context_lens, lines, shape, runs if shape.shared else ())
        if runs:
            self._reads = SharedReads.of(plan)
        return plan

    def take_reads(self) -> SharedReads:
        """What the last plan reads for several sequences at once; nothing if that was taken before."""
        reads, self._reads = self._reads, SharedReads()
        return reads
