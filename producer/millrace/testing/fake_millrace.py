"""FakeMillrace: queues, a worker and a model in the memory of a test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType

from millrace import AsyncClient, AsyncJob, Client, Job
from millrace_schemas import ErrorCode, ErrorInfo, IllegalTransition, ModelInfo, Request
from millrace_schemas.job import check_model_name

from .answers import Answer, Answers, Ending, find_answer
from .fake_job import FakeJob
from .memory_backend import MemoryBackend
from .memory_store import MemoryStore

#: Any handle on a job, or its id.
AnyJob = Job | AsyncJob | FakeJob | str


class FakeMillrace:
    """Hands out real clients whose jobs stay in this process and are answered as the test says.

    `answers` is None (each job's prompt comes back), one answer to everything, a mapping from `prompt_text` to answers,
    or a function of the Request, called in `submit`. Jobs end while they are submitted, or `delay` seconds later. With
    `manual` they stay queued until `start`, `stream`, `finish` or `fail` is called. All three may be changed at any
    time and hold for the jobs submitted from then on. Any number of clients, threads and event loops may share a fake.
    """

    def __init__(
        self,
        answers: Answers = None,
        *,
        models: str | ModelInfo | Iterable[str | ModelInfo] = "demo",
        delay: float = 0.0,
        manual: bool = False,
    ):
        self.answers = answers
        self.delay = delay
        self.manual = manual
        given = [models] if isinstance(models, str | ModelInfo) else models
        self._store = MemoryStore([_model_info(model) for model in given], self._work_off)
        self._clients: list[Client] = []

    def client(self, model: str | None = None) -> Client:
        """A blocking client; `close` closes it, too."""
        client = Client._over(self.async_client(model))
        self._clients.append(client)
        return client

    def async_client(self, model: str | None = None) -> AsyncClient:
        """An asynchronous client, for any event loop."""
        return AsyncClient._over(MemoryBackend(self._store), model)

    @property
    def jobs(self) -> list[FakeJob]:
        """All jobs that were made, in the order of their submission."""
        return self._store.list_jobs()

    @property
    def submitted(self) -> list[Request]:
        """Their requests, as a worker would read them."""
        return [job.request for job in self.jobs]

    def start(self, job: AnyJob) -> None:
        """Takes a queued job; it is then in progress. Raises IllegalTransition when it has ended."""
        self._store.work(_id_of(job), _take_over)

    def stream(self, job: AnyJob, pieces: Sequence[str]) -> None:
        """Goes on with a job's answer, a Tokens event a piece, and starts it if need be."""
        if isinstance(pieces, str):
            raise TypeError("stream takes a sequence of pieces, not one str")

        def do(job: FakeJob, now: float) -> None:
            _take_over(job, now)
            job.say(pieces, now)

        self._store.work(_id_of(job), do)

    def finish(self, job: AnyJob, answer: Answer | None = None) -> None:
        """Ends a job with `answer`; without one, with what was streamed, else as `answers` says.

        A text begins with what was streamed before. Raises IllegalTransition when the job has ended, JobNotFound.
        """

        def do(job: FakeJob, now: float) -> None:
            _take_over(job, now)
            if answer is not None:
                job.end(Ending.of(answer), now)
            elif job.text:
                job.end(Ending.of(job.text), now)
            else:
                job.end(find_answer(self.answers, job.request), now)

        self._store.work(_id_of(job), do)

    def fail(
        self, job: AnyJob, code: ErrorCode | str = ErrorCode.INTERNAL, message: str = "the test made it fail"
    ) -> None:
        """Ends a job without an answer; what was streamed stays readable.

        As with a worker, `cancelled` and `deadline_exceeded` end in the states cancelled and expired, and
        `too_many_attempts` and `undecodable` leave an entry in the dead stream. Raises as `finish` does.
        """
        self.finish(job, ErrorInfo(ErrorCode(code), message))

    def advance(self, seconds: float) -> None:
        """Moves the clock: delayed answers come, deadlines pass, times to live end, without any sleep."""
        self._store.advance(seconds)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Everything that would ask Redis raises QueueUnavailable meanwhile, at once; no job is lost."""
        self._store.set_down(True)
        try:
            yield
        finally:
            self._store.set_down(False)

    def add_model(self, model: str | ModelInfo) -> None:
        """Registers a model, as its first worker would, or replaces what is known of it."""
        info = _model_info(model)
        self._store.models[info.name] = info

    def remove_model(self, name: str) -> None:
        """Ends a model's registration; its jobs stay."""
        del self._store.models[name]

    def close(self) -> None:
        """Closes the blocking clients."""
        clients, self._clients = self._clients, []
        for client in clients:
            client.close()

    def __enter__(self) -> FakeMillrace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work_off(self, job: FakeJob) -> None:
        """What happens to a new job by itself."""
        if self.manual:
            return
        # Its deadline may have passed, and other threads may cancel it at any time: then there is nothing left to do.
        with suppress(IllegalTransition):
            self._store.work(job.id, _take_over)
            ending = find_answer(self.answers, job.request)

            def do(job: FakeJob, now: float) -> None:
                if self.delay > 0:
                    job.due = now + self.delay, ending
                else:
                    job.end(ending, now)

            self._store.work(job.id, do)


def _take_over(job: FakeJob, now: float) -> None:
    """Whoever works on a job by hand decides its answer."""
    job.due = None


def _id_of(job: AnyJob) -> str:
    return job if isinstance(job, str) else job.id


def _model_info(model: str | ModelInfo) -> ModelInfo:
    info = (
        model
        if isinstance(model, ModelInfo)
        else ModelInfo(name=model, max_model_len=32_768, vocab_size=128_000, has_chat_template=True)
    )
    check_model_name(info.name)
    return info
