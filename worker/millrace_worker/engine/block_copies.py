"""Blocks between the KV cache and host memory, beside the steps that run."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy on its way, or done. `host` are the buffers, [block_bytes] uint8 each, in the order of `blocks`."""

    blocks: list[int]
    host: list[torch.Tensor]
    _done: torch.cuda.Event | None

    @property
    def is_done(self) -> bool:
        return self._done is None or self._done.query()

    def wait(self) -> None:
        if self._done is not None:
            self._done.synchronize()

    def let_steps_see(self) -> None:
        """Orders steps that are launched from now on after this copy, which is done: they do not wait."""
        if self._done is not None:
            torch.cuda.current_stream().wait_event(self._done)


class BlockCopies:
    """On a GPU copies have their own stream, so that the copy engine works while steps run.

    A copy comes after every step that was launched before it, in both directions: what is read is computed, and what is
    overwritten nobody reads any more. Steps that are launched once an inward copy is done see its data.
    """

    def __init__(self, kv_cache: torch.Tensor) -> None:
        """`kv_cache` is contiguous, with the blocks in its first dimension."""
        self._blocks = kv_cache.view(kv_cache.shape[0], -1).view(torch.uint8)
        self._device = kv_cache.device
        self._stream = torch.cuda.Stream(kv_cache.device) if kv_cache.is_cuda else None

    @property
    def block_bytes(self) -> int:
        return self._blocks.shape[1]

    def new_buffer(self) -> torch.Tensor:
        """Host memory of a block. On a GPU it is pinned, and kept by torch for the next one. For any thread."""
        if self._stream is None:
            return torch.empty(self.block_bytes, dtype=torch.uint8)
        with torch.cuda.device(self._device):  # a new thread's device is the first one
            return torch.empty(self.block_bytes, dtype=torch.uint8, pin_memory=True)

    def to_host(self, blocks: list[int]) -> Copy:
        """Copies these blocks out."""
        host = [self.new_buffer() for _ in blocks]
        return self._copy(blocks, host, [(buffer, self._blocks[i]) for buffer, i in zip(host, blocks, strict=True)])

    def to_device(self, blocks: list[int], host: list[torch.Tensor]) -> Copy:
        """Copies these buffers into blocks, which nobody may read before the copy is done."""
        return self._copy(blocks, host, [(self._blocks[i], buffer) for buffer, i in zip(host, blocks, strict=True)])

    def _copy(
        self, blocks: list[int], host: list[torch.Tensor], pairs: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> Copy:
        if self._stream is None:
            for target, source in pairs:
                target.copy_(source)
            return Copy(blocks, host, None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        return Copy(blocks, host, done)
