"""Blocks between the KV cache and host memory, beside the steps that run."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

#: Host memory for this many blocks is taken in one piece, where it is not there already.
_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy on its way, or done. `host` are the buffers, [block_bytes] uint8 each, in the order of `blocks`."""

    blocks: list[int]
    host: list[torch.Tensor]
    _began: torch.cuda.Event | None
    _done: torch.cuda.Event | None
    _seconds: float = 0.0

    @property
    def is_done(self) -> bool:
        return self._done is None or self._done.query()

    @property
    def seconds(self) -> float:
        """How long it took from the first byte to the last; once it is done."""
        if self._began is None or self._done is None:
            return self._seconds
        return self._began.elapsed_time(self._done) / 1000

    def wait(self) -> None:
        if self._done is not None:
            self._done.synchronize()

    def keep_before_steps(self) -> None:
        """Orders steps that are launched from now on after this copy. If it is done, they do not wait."""
        if self._done is not None:
            torch.cuda.current_stream().wait_event(self._done)


class BlockCopies:
    """On a GPU copies have streams of their own, one each way, so that the copy engines work while steps run.

    A copy comes after every step that was launched before it, in both directions: what is read is computed, and what is
    overwritten nobody reads any more. Steps come after a copy where `keep_before_steps` says so: those that read what
    was copied in, and those that overwrite what was not held until it was copied out.
    """

    def __init__(self, kv_cache: torch.Tensor) -> None:
        """`kv_cache` is contiguous, with the blocks in its first dimension."""
        self._blocks = kv_cache.view(kv_cache.shape[0], -1).view(torch.uint8)
        self._device = kv_cache.device
        self._out = torch.cuda.Stream(kv_cache.device) if kv_cache.is_cuda else None
        self._in = torch.cuda.Stream(kv_cache.device) if kv_cache.is_cuda else None

    @property
    def block_bytes(self) -> int:
        return self._blocks.shape[1]

    def new_buffer(self) -> torch.Tensor:
        """Host memory of a block. On a GPU it is pinned, and kept by torch for the next one. For any thread."""
        return self._piece(1)[0]

    def new_buffers(self, count: int) -> list[torch.Tensor]:
        """Of several blocks, some side by side."""
        starts = range(0, count, _TOGETHER)
        return [row for start in starts for row in self._piece(min(_TOGETHER, count - start))]

    def to_host(self, blocks: list[int], host: list[torch.Tensor]) -> Copy:
        """Copies these blocks out, into these buffers."""
        pairs = [(target, source) for source, target in self._runs(blocks, host)]
        return self._copy(blocks, host, pairs, self._out)

    def to_device(self, blocks: list[int], host: list[torch.Tensor]) -> Copy:
        """Copies these buffers into blocks, which nobody may read before the copy is done."""
        return self._copy(blocks, host, self._runs(blocks, host), self._in)

    def _piece(self, count: int) -> list[torch.Tensor]:
        shape = (count, self.block_bytes)
        if self._out is None:
            return list(torch.empty(shape, dtype=torch.uint8))
        with torch.cuda.device(self._device):  # a new thread's device is the first one
            return list(torch.empty(shape, dtype=torch.uint8, pin_memory=True))

    def _runs(self, blocks: list[int], host: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(blocks, buffers) of equal size; what lies side by side in both is one, whatever order it was given in."""
        size = self.block_bytes
        order = sorted(range(len(blocks)), key=blocks.__getitem__)
        at = [buffer.data_ptr() for buffer in host]
        runs: list[tuple[torch.Tensor, torch.Tensor]] = []
        start = 0
        for end in range(1, len(order) + 1):
            if end < len(order):
                last, this = order[end - 1], order[end]
                together = blocks[this] == blocks[last] + 1 and at[this] == at[last] + size
                if together and _same_memory(host[this], host[last]):
                    continue
            first, count = order[start], end - start
            buffers = host[first].as_strided((count * size,), (1,))
            runs.append((self._blocks[blocks[first] : blocks[first] + count].view(-1), buffers))
            start = end
        return runs

    def _copy(
        self,
        blocks: list[int],
        host: list[torch.Tensor],
        pairs: list[tuple[torch.Tensor, torch.Tensor]],
        stream: torch.cuda.Stream | None,
    ) -> Copy:
        """Copies the second of each pair to the first."""
        if stream is None:
            start = time.perf_counter()
            for target, source in pairs:
                target.copy_(source)
            return Copy(blocks, host, None, None, time.perf_counter() - start)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        began, done = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(stream):
            began.record()
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            done.record()
        return Copy(blocks, host, began, done)


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether one allocation holds both."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
