"""Jobs of a front, made without a queue."""

from __future__ import annotations

from typing import Any

from fake_text import LetterTokenizer
from millrace_schemas import Lane, Request, Sampling, encode
from millrace_worker.frames import AddSequence, Ready, SequenceParams
from millrace_worker.front.job import Job
from millrace_worker.front.text import TextTools
from millrace_worker.stop import StopChecker
from millrace_worker.stream.closing import Ending
from millrace_worker.stream.lease import Lease, LeasedJob, Verdict

TOOLS = TextTools(LetterTokenizer(), StopChecker)
READY = Ready("fake", 100, 16, 16, 50, 1000)


def leased_job(
    request: Request,
    *,
    attempt: int = 1,
    checkpoint: tuple[int, ...] = (),
    name: str = "j",
    lane: Lane = Lane.INTERACTIVE,
) -> LeasedJob:
    return LeasedJob(
        lease=Lease(name, lane, "1-1", attempt),
        verdict=Verdict.RUN,
        request=encode(request),
        checkpoint=checkpoint,
        stream=request.stream,
        cancel_requested=False,
        created_at=1.0,
        started_at=2.0,
        leased_at=3.0,
    )


def request_of(prompt: tuple[int, ...] = (1, 2), **fields: Any) -> Request:
    sampling = fields.pop("sampling", Sampling(max_tokens=20))
    return Request(model="letters", prompt_token_ids=prompt, sampling=sampling, **fields)


def job_of(
    name: str = "j",
    *,
    attempt: int = 1,
    prompt: tuple[int, ...] = (1, 2),
    checkpoint: tuple[int, ...] = (),
    max_tokens: int = 20,
    stop_token_ids: tuple[int, ...] = (),
    lane: Lane = Lane.INTERACTIVE,
    **fields: Any,
) -> Job:
    request = request_of(prompt, **fields)
    params = SequenceParams(max_tokens, request.sampling.min_tokens, stop_token_ids=stop_token_ids)
    leased = leased_job(request, attempt=attempt, checkpoint=checkpoint, name=name, lane=lane)
    return Job(leased, request, list(prompt), params, TOOLS)


class Wall:
    """Stands for the publisher and the link: keeps what it is given."""

    def __init__(self) -> None:
        self.endings: dict[str, Ending] = {}
        self.added: list[AddSequence] = []
        self.aborted: list[int] = []

    async def finish(self, ending: Ending) -> bool:
        self.endings[ending.lease.job_id] = ending
        return True

    def follow(self, progress: Any) -> None: ...

    def forget(self, progress: Any) -> None: ...

    def poke(self) -> None: ...

    def add(self, sequence: AddSequence) -> None:
        self.added.append(sequence)

    def abort(self, seq_id: int) -> None:
        self.aborted.append(seq_id)
