"""Client: AsyncClient for callers that block. Its methods are the asynchronous ones, run on one background thread."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from millrace_schemas import Event

from .async_client import AsyncClient
from .async_job import AsyncJob
from .config import DEFAULT_REDIS_URL
from .errors import ClientClosed
from .event_stream import START, EventStream
from .portal import Portal

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
W = TypeVar("W")


class _Blocking(Generic[T]):
    """A thing that lives on the portal's loop."""

    def __init__(self, portal: Portal, target: T):
        self._portal = portal
        self._target = target


def _blocking(
    method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[_Blocking[T], P], R]:
    """`method` with the same arguments and the same errors, for callers that block."""

    def call(self: _Blocking[T], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._portal.run(method(self._target, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


def _making(
    wrap: Callable[[Portal, R], W], method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]]
) -> Callable[Concatenate[_Blocking[T], P], W]:
    """As `_blocking`, for methods whose results need to be wrapped, too."""

    def call(self: _Blocking[T], /, *args: P.args, **kwargs: P.kwargs) -> W:
        return wrap(self._portal, self._portal.run(method(self._target, *args, **kwargs)))

    functools.update_wrapper(call, method)
    return call


class Events(_Blocking[EventStream]):
    """Iterator over Started, Tokens and, last, Finished; `last_id` names the newest one handed out."""

    @property
    def last_id(self) -> str:
        return self._target.last_id

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> Event:
        try:
            return self._portal.run(self._target.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


class Job(_Blocking[AsyncJob]):
    """One job of a client, by id. Making one costs nothing and asks nobody."""

    @property
    def id(self) -> str:
        return self._target.id

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    state = _blocking(AsyncJob.state)
    record = _blocking(AsyncJob.record)
    request = _blocking(AsyncJob.request)
    result = _blocking(AsyncJob.result)
    wait = _blocking(AsyncJob.wait)
    cancel = _blocking(AsyncJob.cancel)

    def events(self, after: str = START) -> Events:
        """Started, Tokens ... and Finished of a job with stream=True, from the first one or behind `after`."""
        return Events(self._portal, self._target.events(after))


def _jobs(portal: Portal, jobs: list[AsyncJob]) -> list[Job]:
    return [Job(portal, job) for job in jobs]


class Client(_Blocking[AsyncClient]):
    """Submits jobs to the queues in one Redis and hands out their results; any number of threads may share it.

    See AsyncClient for the arguments. Close it, or use it as a context manager.
    """

    #: Closing a view closes nothing.
    _is_view = False

    def __init__(
        self,
        url: str = DEFAULT_REDIS_URL,
        model: str | None = None,
        *,
        socket_timeout: float = 5.0,
        retry_for: float = 10.0,
    ):
        # The connection refuses a bad URL before a thread is started.
        target = AsyncClient(url, model, socket_timeout=socket_timeout, retry_for=retry_for)
        super().__init__(Portal(), target)

    @classmethod
    def _over(cls, target: AsyncClient) -> Self:
        """The blocking form of `target`, which nobody else uses."""
        client = cls.__new__(cls)
        _Blocking.__init__(client, Portal(), target)
        return client

    def for_tenant(self, tenant: str, *, max_jobs: int = 0) -> Client:
        """A view of one tenant's jobs; see AsyncClient.for_tenant. It ends with this client."""
        view = Client.__new__(Client)
        _Blocking.__init__(view, self._portal, self._target.for_tenant(tenant, max_jobs=max_jobs))
        view._is_view = True
        return view

    submit = _making(Job, AsyncClient.submit)
    submit_many = _making(_jobs, AsyncClient.submit_many)
    state = _blocking(AsyncClient.state)
    record = _blocking(AsyncClient.record)
    request = _blocking(AsyncClient.request)
    result = _blocking(AsyncClient.result)
    wait = _blocking(AsyncClient.wait)
    cancel = _blocking(AsyncClient.cancel)
    models = _blocking(AsyncClient.models)
    queue_stats = _blocking(AsyncClient.queue_stats)
    failures = _blocking(AsyncClient.failures)
    dead = _blocking(AsyncClient.dead)
    requeue_dead = _making(Job, AsyncClient.requeue_dead)
    purge_dead = _blocking(AsyncClient.purge_dead)

    def get(self, job_id: str) -> Job:
        """The handle of a job by its id; whether there is one, `state()` tells. Raises InvalidRequest on no id."""
        return Job(self._portal, self._target.get(job_id))

    def events(self, job_id: str, after: str = START) -> Events:
        """What happens to a job with stream=True; see Job.events."""
        return Events(self._portal, self._target.events(job_id, after))

    def close(self) -> None:
        """Closes the connections; waits under way raise ClientClosed. The jobs go on."""
        if not self._is_view and not self._portal.closed:
            # Another thread may close it just now, too.
            with contextlib.suppress(ClientClosed):
                self._portal.run(self._target.aclose())
            self._portal.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
