from __future__ import annotations

import pytest

from front_parts import READY, job_of
from millrace_schemas import Lane
from millrace_worker.frames import Load, Ready
from millrace_worker.front.admission import Admission
from millrace_worker.front.job import Job

FREE = Load(free_blocks=50, total_blocks=50)


def names(admitted: list) -> list[str]:
    return [job.id for job, _ in admitted]


def places(jobs: Admission, load: Load = FREE, ready: Ready = READY) -> tuple[int, int]:
    """Jobs of the interactive and of the batch lane that may be leased."""
    room = jobs.room(ready, load)
    return room.of(Lane.INTERACTIVE), room.of(Lane.BATCH)


def test_room_is_rows_and_a_look_ahead() -> None:
    jobs = Admission(3)
    assert places(jobs) == (16 + 8, 16 + 8)
    wide = Ready("fake", 100, 256, 16, 10_000, 1000)
    assert places(jobs, Load(free_blocks=10_000), wide) == (256 + 32, 256 + 32)
    for n in range(10):
        jobs.add(job_of(f"j{n}"))
    jobs.prepares(Lane.INTERACTIVE, 2)
    assert places(jobs) == (24 - 12, 24 - 12)


@pytest.mark.parametrize("lane", Lane)
def test_a_full_lane_leaves_the_other_an_eighth_of_its_own(lane: Lane) -> None:
    jobs = Admission(3)
    for n in range(20):
        jobs.add(job_of(f"j{n}", lane=lane))
    jobs.prepares(lane, 4)
    other = Lane.BATCH if lane is Lane.INTERACTIVE else Lane.INTERACTIVE
    room = jobs.room(READY, FREE)
    assert (room.of(lane), room.of(other)) == (0, 24 // 8)
    jobs.add(job_of("other", lane=other))
    room = jobs.room(READY, FREE)
    assert (room.of(lane), room.of(other)) == (0, 24 // 8 - 1)


def test_room_ends_where_waiting_prompts_fill_the_free_blocks() -> None:
    jobs = Admission(3)
    running = job_of("running")
    jobs.add(running)
    jobs.admit()
    running.scheduled = True
    tight = Load(free_blocks=4)
    assert min(places(jobs, tight)) > 0
    # 71 tokens need five blocks of sixteen, ten of them all that there are.
    for n in range(10):
        jobs.add(job_of(f"waiting{n}", prompt=(1,) * 70))
    assert places(jobs, tight) == (0, 0)
    assert min(places(jobs, Load(free_blocks=51))) > 0


def test_a_beginning_that_another_job_had_takes_no_blocks_again() -> None:
    jobs, system = Admission(3), tuple(range(640))
    for n in range(3):
        jobs.add(job_of(f"waiting{n}", prompt=(*system, n, 7), lane=Lane.BATCH))
    # 41 blocks for the first, and one for each of the others.
    jobs.admit()
    assert places(jobs, Load(free_blocks=43))[1] == 0
    assert places(jobs, Load(free_blocks=44))[1] > 0
    jobs.add(job_of("changed", prompt=(5, *system), lane=Lane.BATCH))
    assert places(jobs, Load(free_blocks=44 + 41 - 1))[1] == 0
    assert places(jobs, Load(free_blocks=44 + 41))[1] > 0


def test_blocks_of_the_batch_lane_are_the_interactive_ones_to_have() -> None:
    jobs = Admission(3)
    for n in range(8):
        jobs.add(job_of(f"batch{n}", prompt=(1,) * 70, lane=Lane.BATCH))
    for job, _ in jobs.admit()[:7]:
        job.scheduled = True
    tight = Load(free_blocks=2)
    assert places(jobs, tight) == (16, 0)
    urgent = job_of("urgent", prompt=(1,) * 70)
    jobs.add(urgent)
    assert places(jobs, tight) == (15, 0)


def test_an_idle_engine_has_all_its_blocks() -> None:
    jobs = Admission(3)
    jobs.add(job_of("waiting"))
    assert min(places(jobs, Load(free_blocks=0))) > 0


def test_admits_each_job_once() -> None:
    jobs = Admission(3)
    for n in range(3):
        jobs.add(job_of(f"j{n}"))
    admitted = jobs.admit()
    assert names(admitted) == ["j0", "j1", "j2"]
    assert len({seq_id for _, seq_id in admitted}) == 3
    assert jobs.admit() == []
    jobs.engine_gone()
    again = jobs.admit()
    assert names(again) == ["j0", "j1", "j2"]
    assert {s for _, s in again}.isdisjoint({s for _, s in admitted}), "a new engine gets new ids"


def test_a_job_on_its_last_delivery_runs_alone() -> None:
    jobs = Admission(3)
    jobs.add(job_of("a"))
    jobs.admit()
    jobs.add(job_of("last", attempt=3))
    assert jobs.room(READY, FREE).shared == 0
    assert jobs.admit() == []
    a = jobs.get("a")
    assert a is not None
    jobs.remove(a)
    assert names(jobs.admit()) == ["last"]
    jobs.add(job_of("b"))
    assert jobs.admit() == []
    last = jobs.get("last")
    assert last is not None
    jobs.remove(last)
    assert names(jobs.admit()) == ["b"]


def test_looks_at_no_job_but_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Job] = []
    judged = Job.must_run_alone

    def counted(job: Job, max_attempts: int) -> bool:
        looks.append(job)
        return judged(job, max_attempts)

    monkeypatch.setattr(Job, "must_run_alone", counted)
    jobs = Admission(3)
    for n in range(100):
        jobs.add(job_of(f"j{n}"))
        assert len(jobs.admit()) == 1
    for job in jobs:
        jobs.remove(job)
        assert jobs.admit() == []
    assert len(looks) == 100


def test_the_only_delivery_there_is_does_not_run_alone() -> None:
    jobs = Admission(1)
    for n in range(3):
        jobs.add(job_of(f"j{n}"))
    assert len(jobs.admit()) == 3


def test_what_the_engine_has_done_with_is_not_aborted() -> None:
    jobs = Admission(3)
    jobs.add(job_of("a"))
    jobs.add(job_of("b"))
    (a, _), (b, seq_b) = jobs.admit()
    jobs.left_engine(a)
    assert jobs.remove(a) is None
    assert jobs.remove(b) == seq_b
    assert not jobs.engine_busy
    assert len(jobs) == 0
