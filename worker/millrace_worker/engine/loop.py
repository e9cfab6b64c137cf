"""The engine's loop: step = schedule, launch, complete, with two steps in flight on a device of its own."""

from __future__ import annotations

import math
import time

import msgspec
import structlog

from millrace_kernels import SharedReads
from millrace_schemas import ErrorCode
from millrace_worker.cache_stats import CacheStats
from millrace_worker.frames import AddSequence, Likely, PinnedPrefix, PinState, Ready, Refusal, StepOutput

from .host_times import HostClock, HostTimes
from .lower_tier import NoLowerTier
from .pace import Pace
from .runner import Launched, ModelRunner
from .scheduler import Scheduler
from .sequence import Sequence
from .step import SEQUENCE_COST

log = structlog.get_logger()

#: Seconds for which a step that has nothing to run waits for a lower tier before the front is listened to again.
_LONGEST_WAIT = 0.005
#: Seconds until copies are looked at again while no step runs.
_GLANCE = 0.001
#: Seconds between two reports of the prefix cache: while steps or tiers go on, and at least.
_REPORT_EVERY, _REPORT_LEAST = 1.0, 0.1


class StepLoop:
    """Sequences come in, steps run, outputs go out. Single-threaded; `step` until `has_work` is false."""

    def __init__(self, ready: Ready, scheduler: Scheduler, runner: ModelRunner, *, overlap: bool) -> None:
        """`overlap`: the next step is launched before the last one's tokens are read."""
        self.ready = ready
        self.scheduler = scheduler
        self.runner = runner
        self._overlap = overlap
        self._pace = Pace(scheduler.max_num_batched_tokens + scheduler.max_num_seqs * SEQUENCE_COST)
        self.scheduler.allowance = self._pace.allowance
        self._clock = HostClock()
        self._launched: Launched | None = None
        self._steps = 0
        self._refused: list[Refusal] = []
        self._finished: list[tuple[int, str]] = []
        self._reported: CacheStats | None = None
        self._reported_at = -math.inf

    @property
    def has_work(self) -> bool:
        waiting = self._launched is not None or bool(self._refused) or bool(self._finished)
        return waiting or self.scheduler.has_work or self.scheduler.pins.rest() == 0.0

    def rest(self) -> float | None:
        """Seconds until there is work, unless somebody brings some; None: there will be none."""
        return 0.0 if self.has_work else self.scheduler.pins.rest()

    def pause(self) -> float | None:
        """Seconds until there is work or it is time for `report`, unless somebody brings work; None: there is neither.

        Tiers go on by themselves while no step runs.
        """
        rest = self.rest()
        if isinstance(self.scheduler.tier, NoLowerTier):
            return rest
        due = max(0.0, self._reported_at + _REPORT_EVERY - time.monotonic())
        if self.scheduler.tier.is_copying:
            due = min(due, _GLANCE)
        return due if rest is None else min(rest, due)

    def report(self) -> StepOutput | None:
        """What tiers have done while there was nothing to run, once in a while; None: nothing."""
        self.scheduler.tier.poll()
        cache = self._cache_report()
        if cache is None:
            return None
        # Slots are added up over steps, and this is none.
        load = msgspec.structs.replace(self.scheduler.load(), allocated_slots=0, used_slots=0)
        return StepOutput(self._steps, load=load, cache=cache)

    @property
    def host_times(self) -> HostTimes:
        """Where the time of all steps went."""
        return self._clock.times

    @property
    def cache_stats(self) -> CacheStats:
        """What the tiers of the prefix cache have done."""
        stats, pool, ceiling = self.scheduler.tier.stats, self.scheduler.pool, self.scheduler.ceiling
        block_bytes = self.runner.kv_cache[0].nbytes
        return msgspec.structs.replace(
            stats,
            blocks={"gpu": pool.num_named, **stats.blocks},
            bytes={"gpu": pool.num_named * block_bytes, **stats.bytes},
            lookups=ceiling.lookups,
            distinct=ceiling.distinct,
            pinned_misses=dict(self.scheduler.pins.misses),
        )

    def close(self) -> None:
        """Ends what runs beside the steps; no step after this."""
        if isinstance(self.scheduler.tier, NoLowerTier):
            return
        self.scheduler.tier.close()
        log.info("prefix cache", **msgspec.structs.asdict(self.cache_stats))

    def add(self, new: AddSequence) -> None:
        """Takes a sequence in; one that can never run is refused in the next StepOutput."""
        refusal = self._refusal(new)
        if refusal is not None:
            self._refused.append(refusal)
            return
        seq = Sequence(new.seq_id, new.prompt, new.generated, new.params, new.priority)
        reason = Scheduler.finish_reason(seq)
        if reason is not None:  # resumed after its last token, before its result was written
            self._finished.append((seq.seq_id, reason))
            return
        self.scheduler.add(seq)

    def abort(self, seq_id: int) -> None:
        self.scheduler.abort(seq_id)

    def pin(self, prefix: PinnedPrefix) -> None:
        """Brings a prefix into the cache and keeps it there. What cannot be kept is reported in a StepOutput."""
        # No prompt has more tokens, as an answer has at least one; and its last token is always computed.
        tokens = prefix.tokens[: self.ready.max_model_len - 2]
        bad = bool(tokens) and not 0 <= min(tokens) <= max(tokens) < self.ready.vocab_size
        self.scheduler.pins.pin(msgspec.structs.replace(prefix, tokens=tokens), bad=bad)

    def unpin(self, pin_id: str) -> None:
        """Forgets a pin, if it is still here."""
        own = self.scheduler.pins.unpin(pin_id)
        if own is not None:
            self.scheduler.abort(own)

    def step(self) -> StepOutput:
        """All of a step, for those who drive it in their own process: when nothing is left to run, tiers are done.

        Others send what `advance` gives on its way before they `tend`.
        """
        output = self.advance()
        self.tend()
        if not self.has_work:
            self.scheduler.tier.settle()
        return output

    def tend(self) -> None:
        """Begins to copy out what tiers keep; with outputs on their way, nobody waits for that."""
        self._clock.start()
        self.scheduler.tier.flush()
        self._clock.lap("report")

    def advance(self) -> StepOutput:
        """Launches one forward pass, if anything can run, and reports what came of the one before, or of this one."""
        began, clock = time.perf_counter(), self._clock
        clock.start()
        tier = self.scheduler.tier
        tier.poll()
        self._bring_pins()
        step = self.scheduler.schedule(time.monotonic())
        started, self.scheduler.started = self.scheduler.started, []
        clock.lap("schedule")
        tokens: list[tuple[int, list[int]]] = []
        finished, self._finished = self._finished, []
        logprobs: dict[int, list[Likely]] = {}
        load = self.scheduler.load()
        clock.lap("report")
        launched, shared = None, SharedReads()
        if step is not None:
            inputs = self.runner.inputs(step)
            clock.lap("inputs")
            launched = self.runner.launch(step, inputs)
            shared = launched.shared
            clock.lap("launch")
        if self._overlap:
            launched, self._launched = self._launched, launched
        if launched is not None:
            sampled = launched.wait()
            clock.lap("wait")
            completion = self.scheduler.complete(launched.step, sampled)
            tokens, ended = self._without_own(completion.tokens, completion.finished)
            finished += ended
            found = launched.logprobs()
            logprobs = {seq_id: [found[seq_id]] for seq_id, _ in tokens if seq_id in found} if found else {}
            clock.lap("complete")
        pins = self._pins_report()
        if step is None and launched is None and self.has_work:
            tier.wait(_LONGEST_WAIT)
        refused, self._refused = self._refused, []
        self._steps += 1
        seconds = time.perf_counter() - began
        if launched is not None:
            # With two steps in flight it was the one before that was waited for.
            self._pace.observe(launched.step.cost, seconds)
            done = launched.step
            tier.observe_step(done.num_tokens - done.num_decodes, done.num_decodes, seconds)
            self.scheduler.allowance = self._pace.allowance
        sequences, batched = (len(step.seqs), step.num_tokens) if step is not None else (0, 0)
        output = StepOutput(
            *(self._steps, tokens, finished, refused, started, load, seconds, sequences, batched, logprobs),
            shared_read=shared.read,
            shared_saved=shared.saved,
            pins=pins,
            cache=self._cache_report(),
        )
        clock.lap("report")
        return output

    def _bring_pins(self) -> None:
        new, superfluous = self.scheduler.pins.wanted(idle=not self.scheduler.has_jobs)
        for seq_id in superfluous:
            self.scheduler.abort(seq_id)
        for seq in new:
            self.scheduler.add(seq)

    def _without_own(
        self, tokens: list[tuple[int, list[int]]], finished: list[tuple[int, str]]
    ) -> tuple[list[tuple[int, list[int]]], list[tuple[int, str]]]:
        """The same of jobs alone; pins are held whose own sequences have ended."""
        pins = self.scheduler.pins
        if not pins.num_own:
            return tokens, finished
        for seq_id, _ in finished:
            if seq_id < 0:
                pins.ended(seq_id)
        return [item for item in tokens if item[0] >= 0], [item for item in finished if item[0] >= 0]

    def _pins_report(self) -> list[PinState] | None:
        if not self.scheduler.pins.has_news:
            return None
        return self.scheduler.pins.report(self.runner.kv_cache[0].nbytes, idle=not self.scheduler.has_jobs)

    def _cache_report(self) -> CacheStats | None:
        """What has changed, once in a while and before a pause."""
        now = time.monotonic()
        if now - self._reported_at < (_REPORT_EVERY if self.has_work else _REPORT_LEAST):
            return None
        self._reported_at, before = now, self._reported
        self._reported = self.cache_stats
        return None if self._reported == before else self._reported

    def _forget_times(self) -> None:
        """Steps and times are counted from now on; of what was reported nobody has heard."""
        self._steps, self._clock = 0, HostClock()
        self._reported, self._reported_at = None, -math.inf

    def _refusal(self, new: AddSequence) -> Refusal | None:
        limit, prompt, answer = self.ready.max_model_len, len(new.prompt), new.params.max_tokens
        if prompt + answer > limit:
            return Refusal(
                new.seq_id,
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"the prompt has {prompt} tokens and the answer may have {answer}, together more than the "
                f"{limit} that this model serves",
            )
        if not new.prompt:
            return Refusal(new.seq_id, ErrorCode.INVALID_REQUEST, "the prompt has no tokens")
        worst = max(max(new.prompt), max(new.params.stop_token_ids, default=0))
        if worst >= self.ready.vocab_size:
            return Refusal(
                new.seq_id,
                ErrorCode.INVALID_REQUEST,
                f"token id {worst} is not in the model's vocabulary of {self.ready.vocab_size}",
            )
        return None
