"""Python's collector of cyclic garbage, in a process that makes none while it serves."""

from __future__ import annotations

import gc

#: Objects that must have come on top before a collection. A step makes a few thousand and drops them again.
_THRESHOLD = 100_000


def settle() -> None:
    """Leaves out of all later collections what is there now, and has fewer of them. Once what lasts has been made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_THRESHOLD)
