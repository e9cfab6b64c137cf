"""Results of many log-probabilities are put together beside the loop, and still end each job exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from fake_engine import likely_of
from fake_text import LetterTokenizer
from front_parts import READY, Wall, job_of
from millrace_schemas import ErrorCode, FinishReason, JobState, Sampling
from millrace_worker.frames import StepOutput
from millrace_worker.front.logprobs import PIECE
from millrace_worker.front.outcome import Signature
from millrace_worker.front.running import Running
from millrace_worker.stream.closing import Ending
from millrace_worker.stream.lease import LeaseTable

TOP = 20
#: Tokens of an answer: its log-probabilities take several pieces.
TOKENS = 4 * PIECE // (TOP + 1)


class Bench(Wall):
    """Jobs with log-probabilities, all at the last token of theirs, and what the loop does besides."""

    def __init__(self, names: tuple[str, ...]):
        super().__init__()
        self.running = Running(self, LeaseTable(), Signature("letters", "w1"), 3)  # type: ignore[arg-type]
        self.running.engine_serves(self, READY)  # type: ignore[arg-type]
        #: Turns that everything else in the loop has had, and how many it had when each job ended.
        self.turns = 0
        self.ended_at: dict[str, int] = {}
        self.written: list[str] = []
        for name in names:
            job = job_of(name, sampling=Sampling(max_tokens=TOKENS, logprobs=TOP))
            self.running.begin(job)
            before = list(range(TOKENS - 1))
            job.take(before, [likely_of(token, TOP) for token in before], ended_by_token=False)

    async def finish(self, ending: Ending) -> bool:
        self.written.append(ending.lease.job_id)
        self.ended_at[ending.lease.job_id] = self.turns
        return await super().finish(ending)

    def last_step(self) -> None:
        ids = [sequence.seq_id for sequence in self.added]
        self.running.on_step(
            StepOutput(
                1,
                tokens=[(seq_id, [1]) for seq_id in ids],
                finished=[(seq_id, "length") for seq_id in ids],
                logprobs={seq_id: [likely_of(1, TOP)] for seq_id in ids},
            )
        )

    async def until_settled(self) -> None:
        while self.running.held:
            self.turns += 1
            await asyncio.sleep(0)


def with_bench(names: tuple[str, ...], body: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        await body(Bench(names))

    asyncio.run(run())


NAMES = tuple(f"job{n}" for n in range(8))


def test_the_loop_goes_on_while_jobs_of_one_step_end() -> None:
    async def body(bench: Bench) -> None:
        bench.last_step()
        assert bench.running.held == len(NAMES)
        await bench.until_settled()
        assert bench.written == list(NAMES)
        turns = [bench.ended_at[name] for name in NAMES]
        apart = [later - earlier for earlier, later in zip([0, *turns], turns, strict=False)]
        # A turn for each piece, of one job after the other.
        assert all(between >= TOKENS * (TOP + 1) // PIECE for between in apart), apart
        for name in NAMES:
            (choice,) = bench.endings[name].result.choices
            assert choice.finish_reason is FinishReason.LENGTH
            assert choice.logprobs is not None
            assert tuple(token.token_id for token in choice.logprobs) == choice.token_ids == (*range(TOKENS - 1), 1)
            assert "".join(token.token for token in choice.logprobs) == choice.text

    with_bench(NAMES, body)


def test_what_comes_while_an_ending_is_put_together_changes_nothing() -> None:
    async def body(bench: Bench) -> None:
        job = bench.running.jobs.get("job0")
        assert job is not None
        bench.last_step()
        await asyncio.sleep(0)
        bench.last_step()
        bench.running.cancel("job0")
        assert await bench.running.hand_over() == 0
        assert bench.running.held == 2
        assert len(job.generated) == TOKENS
        await bench.until_settled()
        assert bench.written == ["job0", "job1"]
        assert {ending.result.state for ending in bench.endings.values()} == {JobState.COMPLETED}
        assert bench.running.totals.finished == 2

    with_bench(NAMES[:2], body)


def test_a_job_that_fails_keeps_its_log_probabilities() -> None:
    async def body(bench: Bench) -> None:
        bench.running.cancel("job0")
        await bench.until_settled()
        result = bench.endings["job0"].result
        assert result.state is JobState.CANCELLED
        assert len(result.choices[0].logprobs or ()) == TOKENS - 1

    with_bench(NAMES[:1], body)


def test_an_ending_that_cannot_be_put_together_ends_the_job_all_the_same() -> None:
    async def body(bench: Bench) -> None:
        broken = bench.running.jobs.get("job0")
        assert broken is not None
        assert broken.logprobs is not None
        broken.logprobs.likely = []
        bench.last_step()
        await bench.until_settled()
        error = bench.endings["job0"].result.error
        assert error is not None
        assert error.code is ErrorCode.INTERNAL
        assert bench.endings["job1"].result.state is JobState.COMPLETED

    with_bench(NAMES[:2], body)


def test_the_text_of_a_token_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counting(LetterTokenizer):
        def token_bytes(self, token_id: int) -> bytes:
            asked.append(token_id)
            return super().token_bytes(token_id)

    job = job_of(sampling=Sampling(max_tokens=20, logprobs=2))
    assert job.logprobs is not None
    monkeypatch.setattr(job.logprobs, "_tokenizer", Counting())
    job.take([3, 3, 3], [likely_of(3, 2)] * 3, ended_by_token=False)
    assert len(job.logprobs.told()) == 3
    assert sorted(asked) == [3, 4]
