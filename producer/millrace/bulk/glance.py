"""A batch at a glance: what its bar shows, in the terminal, on the status page and for programs."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from millrace_schemas import DecodeError
from millrace_schemas.batch import BATCH_TERMINAL, Batch, BatchStatus

from .described import status_of
from .pace import Pace
from .store import BatchStore, View

#: Seconds for which the pace of a batch that nobody asks for is remembered.
_REMEMBERED = 600.0
#: Unfinished batches that a look reads, and those that have ended beside them.
UNFINISHED = 50
ENDED = 5


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch has come. Times are Unix seconds by the clock of Redis."""

    id: str
    status: BatchStatus
    #: Name of the input without its place.
    file: str
    #: None: the file was not looked through yet.
    model: str | None
    #: Lines; `total` is 0 until they were counted.
    total: int
    completed: int
    failed: int
    #: Share of the lines that have ended, and of the input that was validated, 0 to 1.
    share: float
    checked: float
    #: Lines a second, over the last minute; 0: they stand still; None: not known, or it has ended.
    rate: float | None
    #: Seconds until the last line, at that rate.
    eta: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    #: Output tokens a second.
    token_rate: float | None
    #: Why it does not move.
    problem: str | None
    #: Why it failed: the first of its errors.
    error: str | None
    created_at: float
    expires_at: float
    #: None: it has not ended.
    ended_at: float | None
    #: When all of this was so.
    at: float

    @property
    def ended(self) -> int:
        return self.completed + self.failed

    @property
    def is_over(self) -> bool:
        return self.status in BATCH_TERMINAL

    @property
    def state(self) -> tuple[object, ...]:
        """What makes a change; rates and times do not."""
        return (
            self.status, self.total, self.completed, self.failed, round(self.checked, 2), self.problem, self.error,
            self.prompt_tokens, self.completion_tokens,
        )  # fmt: skip


class BulkFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Those that have not ended, newest first, and behind them the newest that have."""

    batches: tuple[Glance, ...] = ()
    #: All that have not ended, those that `batches` has no room for included.
    unfinished: int = 0

    @property
    def left_out(self) -> int:
        return self.unfinished - sum(not batch.is_over for batch in self.batches)


class Paces:
    """Remembers how batches moved between looks, so that glances have rates."""

    def __init__(self) -> None:
        #: By id: lines, output tokens, and when the last look was over that they know.
        self._known: dict[str, tuple[Pace, Pace, float]] = {}

    def glance(self, view: View, now: float) -> Glance:
        """`now`: Unix time by the clock of Redis, at which `view` was there."""
        batch, progress = view.batch, view.progress
        over = batch.status in BATCH_TERMINAL
        began = batch.in_progress_at
        lines, tokens, last = self._known.get(batch.id) or (Pace(began), Pace(began), float("-inf"))
        # Asked for before another look was over, it may show less than that one did: nothing has gone back. One that
        # is left out leaves none out itself: of many watchers' looks there may always be one under way.
        if view.at >= last:
            last = now
            lines.add(now, progress.ended)
            tokens.add(now, progress.completion_tokens)
        # Before its lines are worked on there is no begin of them, and afterwards there is no pace.
        if over or began is None:
            self._known.pop(batch.id, None)
        else:
            self._known[batch.id] = (lines, tokens, last)
        self._forget(now)
        moves = batch.status in (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING)
        validated = over or batch.status is not BatchStatus.VALIDATING
        return Glance(
            id=batch.id,
            status=status_of(view),
            file=batch.input.rstrip("/").rpartition("/")[2],
            model=batch.model or None,
            total=batch.total,
            completed=progress.completed,
            failed=progress.failed,
            share=min(progress.ended / batch.total, 1.0) if batch.total else 0.0,
            checked=1.0 if validated else progress.checked,
            rate=lines.rate if moves else None,
            eta=lines.left(batch.total) if moves else None,
            prompt_tokens=progress.prompt_tokens,
            cached_tokens=progress.cached_tokens,
            completion_tokens=progress.completion_tokens,
            token_rate=tokens.rate if moves else None,
            problem=None if over else view.problem,
            error=_error(batch),
            created_at=batch.created_at,
            expires_at=batch.expires_at,
            ended_at=_ended_at(batch) if over else None,
            at=now,
        )

    def _forget(self, now: float) -> None:
        for batch_id in [name for name, (_, _, at) in self._known.items() if at < now - _REMEMBERED]:
            del self._known[batch_id]


async def read_batches(store: BatchStore, paces: Paces) -> BulkFiles:
    """At most UNFINISHED + ENDED of them, however many there are. Raises QueueUnavailable."""
    unfinished = await store.count_unfinished()
    try:
        found = await store.unfinished(UNFINISHED)
        # Whatever has not ended stands before the ended ones that are wanted, or among `found`.
        newest = await store.newest(count=len(found) + ENDED)
    except DecodeError:
        # Some are of a newer release, for its own gateways and commands to show.
        return BulkFiles(unfinished=unfinished)
    now = await store.now()
    views = {view.batch.id: view for view in (*newest, *found)}
    glances = sorted((paces.glance(view, now) for view in views.values()), key=lambda one: one.created_at, reverse=True)
    over = [one for one in glances if one.is_over][:ENDED]
    running = [one for one in glances if not one.is_over]
    return BulkFiles(batches=(*running, *over), unfinished=max(unfinished, len(running)))


def _ended_at(batch: Batch) -> float | None:
    return _latest((batch.completed_at, batch.failed_at, batch.expired_at, batch.cancelled_at))


def _latest(times: Iterable[float | None]) -> float | None:
    return max((at for at in times if at is not None), default=None)


def _error(batch: Batch) -> str | None:
    if not batch.errors:
        return None
    first = batch.errors[0]
    where = "" if first.line is None else f"line {first.line}: "
    more = f" (and {len(batch.errors) - 1} more)" if len(batch.errors) > 1 else ""
    return f"{where}{first.message} [{first.code}]{more}"
