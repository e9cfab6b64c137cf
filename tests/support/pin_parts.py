"""The engine's loop over the fake model, with a clock that stands still until it is told, for tests of pins."""

from __future__ import annotations

from typing import Any

import torch

from fake_model import FakeModel
from millrace_kernels import SharedReads
from millrace_worker.engine.block_pool import BlockPool
from millrace_worker.engine.loop import StepLoop
from millrace_worker.engine.lower_tier import NoLowerTier
from millrace_worker.engine.pins import Pins
from millrace_worker.engine.scheduler import Scheduler
from millrace_worker.engine.step import Step
from millrace_worker.frames import AddSequence, PinnedPrefix, PinState, Ready, SequenceParams, StepOutput

BLOCK = 4
#: Bytes of a block, as PinState counts them.
BLOCK_BYTES = 64


class FakeLaunched:
    shared = SharedReads()

    def __init__(self, step: Step, sampled: list[int]) -> None:
        self.step, self._sampled = step, sampled

    def wait(self) -> list[int]:
        return self._sampled

    def logprobs(self) -> dict[int, Any]:
        return {}


class FakeRunner:
    kv_cache = torch.zeros(1, BLOCK_BYTES, dtype=torch.uint8)

    def __init__(self) -> None:
        self._model = FakeModel(BLOCK)
        self.tokens = 0

    def inputs(self, step: Step) -> None:
        self.tokens += step.num_tokens

    def launch(self, step: Step, inputs: None) -> FakeLaunched:
        return FakeLaunched(step, self._model.run(step))


class PinLoop(StepLoop):
    """Remembers what it reported; `now` is the time of its pins."""

    def __init__(
        self,
        num_blocks: int,
        *,
        seqs: int = 4,
        budget: int = 64,
        overlap: bool = False,
        caching: bool = True,
        tier: Any = None,
    ) -> None:
        pool = BlockPool(num_blocks)
        self.now = 0.0
        below = NoLowerTier() if tier is None else tier(pool)
        scheduler = Scheduler(
            pool,
            block_size=BLOCK,
            max_num_seqs=seqs,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caching,
            tier=below,
            pins=Pins(pool, below, BLOCK, enabled=caching, clock=lambda: self.now),
        )
        ready = Ready("fake", num_blocks * BLOCK, seqs, BLOCK, num_blocks, 1000)
        super().__init__(ready, scheduler, FakeRunner(), overlap=overlap)  # type: ignore[arg-type]
        self.states: dict[str, PinState] = {}
        self.answers: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}

    @property
    def pins(self) -> Pins:
        return self.scheduler.pins

    @property
    def pool(self) -> BlockPool:
        return self.scheduler.pool

    @property
    def computed(self) -> int:
        """Tokens of all steps so far."""
        return self.runner.tokens  # type: ignore[attr-defined, no-any-return]

    def step(self) -> StepOutput:
        output = super().step()
        self.scheduler.check_integrity()
        held = {block for table in self.pins.held for block in table}
        assert len(held) <= self.pool.num_blocks // 4
        told = [*output.tokens, *output.finished, *((started.seq_id, started) for started in output.started)]
        assert all(item[0] >= 0 for item in told), "the front hears of the engine's own sequences"
        if output.pins is not None:
            self.states = {state.pin_id: state for state in output.pins}
        for seq_id, tokens in output.tokens:
            self.answers.setdefault(seq_id, []).extend(tokens)
        self.cached.update({started.seq_id: started.cached for started in output.started})
        return output

    def settle(self, steps: int = 10_000) -> None:
        """Steps until there is nothing to do now."""
        for _ in range(steps):
            if not self.has_work:
                return
            self.step()
        raise AssertionError("it does not come to rest")

    def ask(self, seq_id: int, prompt: list[int], max_tokens: int = 2, *, priority: int = 0) -> None:
        self.add(AddSequence(seq_id, prompt, [], SequenceParams(max_tokens=max_tokens), priority))


def pinned(pin_id: str, tokens: list[int], salt: str = "") -> PinnedPrefix:
    return PinnedPrefix(pin_id, tokens, salt)
