"""What a benchmark does to the tiers, so that it knows what it measures."""

from __future__ import annotations

import time
from collections.abc import Callable

from .disk_tier import DiskTier
from .host_tier import HostTier
from .load_costs import LoadCosts
from .load_plan import Store
from .s3_cache import NoS3, S3Cache

#: Seconds between two looks at what others' threads do.
_LOOK = 0.01


class TierSwitches:
    """For benchmarks alone, and only while the engine has no work: nothing of the tiers is copied then.

    Tiers go by their names: "cpu", "disk", "s3".
    """

    def __init__(
        self,
        host: HostTier | None,
        disk: DiskTier | None,
        s3: S3Cache | NoS3,
        costs: LoadCosts,
        forgot: Callable[[], None],
    ) -> None:
        """`forgot` is told when a tier has lost its blocks."""
        self._host, self._disk, self._s3, self._costs, self._forgot = host, disk, s3, costs, forgot

    def always_load(self, on: bool) -> None:
        """Whether whatever a tier has is fetched, even where computing it is quicker."""
        self._costs.always_load = on

    def wait_open(self, seconds: float) -> list[str]:
        """Until host memory is taken and the directory is listed; those that are not within that time."""
        end = time.monotonic() + seconds
        closed = []
        if self._host is not None and not self._host.wait_open(seconds):
            closed.append("cpu")
        if self._disk is not None and not self._disk.wait_open(max(0.0, end - time.monotonic())):
            closed.append("disk")
        return closed

    def wait_for(self, tier: str, chain: list[bytes], seconds: float) -> bool:
        """Whether the tier has all of these blocks within that time."""
        stores: dict[str, Store | S3Cache | NoS3 | None] = {"cpu": self._host, "disk": self._disk, "s3": self._s3}
        store, end = stores[tier], time.monotonic() + seconds
        if store is None:
            return False
        while not all(map(store.has, chain)):
            if time.monotonic() >= end:
                return False
            time.sleep(_LOOK)
        return True

    def forget(self, tier: str) -> None:
        """Empties the CPU tier, or deletes the records of the disk that are of this model. A bucket keeps what it has.

        Raises OSError when a record cannot be deleted.
        """
        if tier == "cpu" and self._host is not None:
            self._host.forget_all()
        elif tier == "disk" and self._disk is not None:
            self._disk.forget_all()
        self._forgot()
