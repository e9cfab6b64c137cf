"""How quick KV blocks are copied to the host and back, beside the link between the two."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from .results import ENGINE, Row

if TYPE_CHECKING:
    import torch

    from millrace_worker.engine.block_copies import BlockCopies
    from millrace_worker.engine.engine import Engine

_BYTES = 10**9
_REPEATS = 5
#: Of the link's rate.
LEAST_SHARE = 0.8
#: How the reason begins of rows that this machine has no figures for.
NOT_MEASURED = "not measured"
OUT, IN = "copies: to the host", "copies: to the device"


def copy_rates(engine: Engine) -> Iterator[Row]:
    """A row each way. The engine has no work, and nothing in its cache that is needed."""
    kv_cache = engine.runner.kv_cache
    if kv_cache.device.type != "cuda":
        failed = f"{NOT_MEASURED}: on a CPU device there is no link to copy over"
        yield from (Row(engine=ENGINE, workload=name, failed=failed) for name in (OUT, IN))
        return
    from millrace_worker.engine.block_copies import BlockCopies
    from millrace_worker.engine.host_arena import HostArena, pin_for
    from millrace_worker.engine.side_by_side import side_by_side

    engine.reset_prefix_cache()
    copies, pool = BlockCopies(kv_cache), engine.scheduler.pool
    count = min(_BYTES // copies.block_bytes, pool.num_free // 2)
    arena = HostArena(2 * count * copies.block_bytes, copies.block_bytes, pin=pin_for(kv_cache.device))
    arena.start()
    arena.wait_taken(60.0)
    if arena.num_slots < 2 * count:
        yield from (Row(engine=ENGINE, workload=name, failed="there is no pinned memory for it") for name in (OUT, IN))
        return
    blocks = pool.allocate(2 * count)
    together = blocks[:count], [arena.slot(i) for i in side_by_side(blocks[:count], list(range(count)))]
    # No two beside each other: every block is a copy of its own.
    apart = sorted(blocks)[::2], [arena.slot(i) for i in range(0, 2 * count, 2)]
    link = _link(kv_cache.device)
    for name, link_rate in zip((OUT, IN), link, strict=True):
        yield _row(name, link_rate, _rates(name, copies, *together), _rates(name, copies, *apart))
    pool.release(blocks)


def _row(name: str, link: float, together: Sequence[float], apart: Sequence[float]) -> Row:
    rate = statistics.median(together)
    return Row(
        engine=ENGINE,
        workload=name,
        seconds=_BYTES / rate,
        all_seconds=tuple(round(_BYTES / one, 6) for one in together),
        figures={
            "gb_s": round(rate / 1e9, 2),
            "link_gb_s": round(link / 1e9, 2),
            "share": round(rate / link, 4),
            "share_scattered": round(statistics.median(apart) / link, 4),
        },
    )


def _rates(name: str, copies: BlockCopies, blocks: list[int], host: list[torch.Tensor]) -> list[float]:
    """Bytes a second, of copies as the tiers make them: outwards in groups, inwards all at once."""
    from millrace_worker.engine.keeping import GROUP_BYTES

    group = max(1, GROUP_BYTES // copies.block_bytes)

    def outwards() -> None:
        starts = range(0, len(blocks), group)
        for copy in [copies.to_host(blocks[i : i + group], host[i : i + group]) for i in starts]:
            copy.wait()

    def inwards() -> None:
        copies.to_device(blocks, host).wait()

    return _timed(outwards if name == OUT else inwards, len(blocks) * copies.block_bytes)


def _link(device: torch.device) -> tuple[float, float]:
    """Bytes a second to the host and to the device, of one copy of pinned memory."""
    import torch

    host = torch.empty(_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_BYTES, dtype=torch.uint8, device=device)

    def copy(target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)

    out = _timed(lambda: copy(host, there), _BYTES)
    back = _timed(lambda: copy(there, host), _BYTES)
    return statistics.median(out), statistics.median(back)


def _timed(work: Callable[[], None], num_bytes: int) -> list[float]:
    """Bytes a second of several runs, after one that does not count."""
    work()
    rates = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        rates.append(num_bytes / (time.perf_counter() - began))
    return rates
