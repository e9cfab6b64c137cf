"""Host memory for KV blocks, taken piece by piece: what is there of it can be used while the rest is still to come."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import structlog
import torch

log = structlog.get_logger()

#: Pinning stops the driver's other calls, a step's launches too, so it is done in pieces of about so many bytes: 1.6 ms
#: each beside an H200, where 256 MiB took 11.
_PIECE_BYTES = 32 * 2**20
#: A piece is a mapping, of which Linux gives a process 65,530 (vm.max_map_count): of much memory, pieces are larger.
_MOST_PIECES = 2**14
#: What is pinned stays mapped until the process ends: the driver must not be left with pages that are gone.
_PINNED: list[torch.Tensor] = []


class HostArena:
    """Slots of a block each, [block_bytes] uint8, never more than `cap_bytes` together."""

    def __init__(
        self,
        cap_bytes: int,
        block_bytes: int,
        *,
        pin: Callable[[torch.Tensor], None] | None = None,
        piece_bytes: int = _PIECE_BYTES,
    ) -> None:
        """With `pin`, which raises RuntimeError where it cannot, pieces come from a thread once `start` was called."""
        self.block_bytes = block_bytes
        self._most = cap_bytes // block_bytes
        self._per_piece = max(1, piece_bytes // block_bytes, -(-self._most // _MOST_PIECES))
        self._pin = pin
        self._pieces: list[torch.Tensor] = []
        self._closed, self._taken = threading.Event(), threading.Event()

    @property
    def num_slots(self) -> int:
        """Slots that there are by now."""
        return min(self._most, len(self._pieces) * self._per_piece)

    def slot(self, number: int) -> torch.Tensor:
        piece, row = divmod(number, self._per_piece)
        return self._pieces[piece][row]

    def start(self) -> None:
        """Begins to take the memory. Not while CUDA graphs are captured, which pinning would break."""
        if self._pin is None:
            self._take_all()  # pages are only had when they are written
        else:
            threading.Thread(target=self._take_all, name="kv-pinner", daemon=True).start()

    def wait_taken(self, seconds: float) -> bool:
        """Whether by then no more is being taken."""
        return self._taken.wait(seconds)

    def close(self) -> None:
        """Takes no more."""
        self._closed.set()

    def _take_all(self) -> None:
        began = time.monotonic()
        try:
            while self.num_slots < self._most and not self._closed.is_set():
                count = min(self._per_piece, self._most - self.num_slots)
                self._pieces.append(self._piece(count))
        except (OSError, RuntimeError, ValueError) as e:
            log.warning(
                "the CPU cache gets no more host memory; lower --cpu-cache-gb, or raise the limit of locked memory",
                bytes=self.num_slots * self.block_bytes,
                wanted=self._most * self.block_bytes,
                reason=str(e).splitlines()[0],
            )
        self._taken.set()
        log.info(
            "CPU cache open",
            blocks=self.num_slots,
            bytes=self.num_slots * self.block_bytes,
            seconds=round(time.monotonic() - began, 3),
        )

    def _piece(self, count: int) -> torch.Tensor:
        memory = mmap.mmap(-1, count * self.block_bytes)
        with suppress(OSError, AttributeError):  # a kernel without huge pages has small ones
            memory.madvise(mmap.MADV_HUGEPAGE)
        piece = torch.frombuffer(memory, dtype=torch.uint8)
        if self._pin is not None:
            piece.zero_()  # the pages are had here, not while the driver is kept
            self._pin(piece)
            _PINNED.append(piece)
        return piece.view(count, self.block_bytes)


def pin_for(device: torch.device) -> Callable[[torch.Tensor], None] | None:
    """How memory is pinned for copies from and to a device, for any thread; None where none is."""
    if device.type != "cuda":
        return None

    def pin(memory: torch.Tensor) -> None:
        with torch.cuda.device(device):  # a new thread's device is the first one
            error = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
        if int(error) != 0:
            raise RuntimeError(f"cudaHostRegister: error {int(error)}")

    return pin
