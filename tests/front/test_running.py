"""Guilt and its limits: what an engine's death and one job's troubles mean for the other jobs."""

from __future__ import annotations

import asyncio

from front_parts import READY, Wall, job_of
from millrace_schemas import ErrorCode, JobState
from millrace_worker.errors import EngineDied
from millrace_worker.frames import Load, Refusal, Started, StepOutput
from millrace_worker.front.job import Job
from millrace_worker.front.outcome import Signature
from millrace_worker.front.running import Running
from millrace_worker.stream.lease import LeaseTable


def bench(max_attempts: int = 3) -> tuple[Running, Wall]:
    wall = Wall()
    running = Running(wall, LeaseTable(), Signature("letters", "w1"), max_attempts)  # type: ignore[arg-type]
    running.engine_serves(wall, READY)  # type: ignore[arg-type]
    return running, wall


def crash(running: Running, wall: Wall) -> list[str]:
    """The engine dies and another one comes; the jobs that are in it."""
    running.engine_died(EngineDied("it fell over"))
    running.engine_serves(wall, READY)  # type: ignore[arg-type]
    return sorted(job.id for job in running.jobs.in_engine)


def test_the_guilty_is_found_and_the_others_are_forgiven() -> None:
    async def body() -> None:
        running, wall = bench()
        jobs: dict[str, Job] = {name: job_of(name) for name in ("a", "b", "poison")}
        for job in jobs.values():
            running.begin(job)
        assert crash(running, wall) == ["a", "b", "poison"]
        assert crash(running, wall) == ["poison"]
        assert crash(running, wall) == ["a", "b"], "both run together again"
        await asyncio.sleep(0)
        assert jobs["a"].deliveries == jobs["b"].deliveries == 1
        ending = wall.endings["poison"]
        assert ending.dead is not None
        assert ending.dead.code is ErrorCode.TOO_MANY_ATTEMPTS
        assert ending.result.error is not None
        assert "it fell over" in ending.result.error.message
        assert set(wall.endings) == {"poison"}

    asyncio.run(body())


def test_a_fresh_engine_gets_the_tokens_so_far() -> None:
    async def body() -> None:
        running, wall = bench()
        running.begin(job_of("a"))
        running.on_step(StepOutput(1, tokens=[(wall.added[0].seq_id, [7, 8])]))
        crash(running, wall)
        assert wall.added[1].generated == [7, 8]
        # The dead engine's last frames mean nothing any more.
        running.on_step(StepOutput(2, tokens=[(wall.added[0].seq_id, [9])]))
        job = running.jobs.get("a")
        assert job is not None
        assert job.generated == [7, 8]

    asyncio.run(body())


def test_an_engine_without_jobs_has_no_load() -> None:
    async def body() -> None:
        running, wall = bench()
        running.begin(job_of("a"))
        (seq_id,) = (sequence.seq_id for sequence in wall.added)
        load = Load(running=1, free_blocks=9, total_blocks=10)
        running.on_step(StepOutput(1, tokens=[(seq_id, [7])], load=load))
        assert running.load_now == load
        running.on_step(StepOutput(2, tokens=[(seq_id, [8])], finished=[(seq_id, "length")], load=load))
        assert running.load_now == Load(free_blocks=10, total_blocks=10)

    asyncio.run(body())


def test_trouble_with_one_job_stays_with_it() -> None:
    async def body() -> None:
        running, wall = bench()
        for name in ("a", "b", "c", "d"):
            running.begin(job_of(name))
        a, b, c, d = (sequence.seq_id for sequence in wall.added)
        broken = running.jobs.get("a")
        assert broken is not None
        broken.take = None  # type: ignore[assignment, method-assign]
        running.on_step(
            StepOutput(
                1,
                tokens=[(a, [1]), (b, [2]), (d, [4]), (99, [1])],
                finished=[(b, "length"), (d, "no such reason"), (98, "stop")],
                refused=[Refusal(c, "no_such_code", "words"), Refusal(97, "internal", "words")],
            )
        )
        await asyncio.sleep(0)
        states = {name: ending.result.state for name, ending in wall.endings.items()}
        failed = JobState.FAILED
        assert states == {"a": failed, "b": JobState.COMPLETED, "c": failed, "d": failed}
        assert wall.aborted == [a]
        assert running.held == 0

    asyncio.run(body())


def test_a_lost_lease_ends_without_a_word() -> None:
    async def body() -> None:
        running, wall = bench()
        job = job_of("a", attempt=2)
        running.begin(job)
        running.lost(job_of("a", attempt=1).lease)
        assert running.held == 1, "an older attempt's loss is not this one's"
        running.lost(job.lease)
        await asyncio.sleep(0)
        assert running.held == 0
        assert wall.aborted == [wall.added[0].seq_id]
        assert wall.endings == {}

    asyncio.run(body())


def test_prompts_and_what_the_prefix_cache_had_of_them() -> None:
    async def body() -> None:
        running, wall = bench()
        job = job_of("a", prompt=(1, 2, 3, 4, 5))
        running.begin(job)
        assert job.seq_id is not None
        running.on_step(
            StepOutput(
                1,
                started=[Started(job.seq_id, 4, {"gpu": 1, "cpu": 3}), Started(999, 7, {"gpu": 7})],
                tokens=[(job.seq_id, [1])],
                finished=[(job.seq_id, "length")],
            )
        )
        totals = running.totals
        assert (totals.prompt_tokens, totals.cached_tokens, totals.cached_by_tier) == (5, 4, {"gpu": 1, "cpu": 3})
        await asyncio.sleep(0)
        usage = wall.endings["a"].result.usage
        assert (usage.cached_tokens, usage.cached_by_tier) == (4, {"gpu": 1, "cpu": 3})

    asyncio.run(body())
