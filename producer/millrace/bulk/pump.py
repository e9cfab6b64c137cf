"""The middle of a shard: lines become jobs, a bounded number at a time, and results become parts.

All that a pump knows beyond its last commit can be done again by another: jobs have the same ids then, and parts count
only once they are committed. So a pump may die anywhere.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress

from millrace.openai_api.errors import ApiError
from millrace_schemas import InvalidRequest, JobState
from millrace_schemas.batch import Line, ShardProgress

from .answers import CANCELLED, EXPIRED, answered, refused, unanswered
from .errors import InputChanged, LeaseLost, StorageError
from .jobs import BatchJobs
from .lines import RawLine
from .output import Harvest, Place
from .pages import Lines, PageReader
from .retreat import end_what_is_over, withdraw
from .rows import BadRow, Row, RowReader
from .settings import BulkSettings
from .storage import Input
from .store import BatchStore, Owned

#: Lines, and bytes of them, that become jobs in one round trip.
_CHUNK, _CHUNK_BYTES = 256, 4 * 1024 * 1024
#: Seconds between two looks for results, when there were some and when there were none for long.
_SHORTEST, _LONGEST = 0.01, 0.25
#: Seconds between two looks for jobs that are not there any more.
_LOST_EVERY = 30.0
#: Jobs at the front of the queue that every look asks for, and seconds between two looks for all.
_FRONT, _ALL_EVERY = 512, 0.5


class Pump:
    """Works on one owned shard of a batch."""

    def __init__(self, store: BatchStore, jobs: BatchJobs, owned: Owned, source: Input, settings: BulkSettings):
        assert owned.shard is not None
        self._store, self._jobs, self._owned, self._settings = store, jobs, owned, settings
        progress, batch = owned.progress, owned.batch
        self._reader = RowReader(batch, source)
        self._pages = PageReader(self._reader, batch.shards[owned.shard], progress.page, settings)
        #: What is fed, and the page behind it, which is read meanwhile.
        self._lines: Lines | None = None
        self._following: asyncio.Task[Lines | None] | None = None
        self._page = progress.page
        #: Whether every line is a job, or was one.
        self.is_fed = False
        self._under_way = {jobs.id(line.number): line for line in progress.under_way}
        self._expired = progress.expired
        self._harvest = Harvest()
        #: The code of lines that get no answer any more, and since when.
        self._ending: str | None = None
        self._ending_at = 0.0
        # At the start, too: what was under way may have ended long ago.
        self._lost_at = self._all_at = float("-inf")

    @property
    def problem(self) -> str | None:
        """Why some of the lines do not end; None: they do."""
        return self._jobs.problem

    @property
    def is_done(self) -> bool:
        return self.is_fed and not self._under_way

    async def run(self, until: float) -> bool:
        """Works until all lines have ended (True), or the monotonic time `until`; all that came is durable then.

        Once all lines are fed it returns before that, so that the next shard can be begun.
        Raises LeaseLost, StorageError, InputChanged, QueueUnavailable, UnknownModel.
        """
        pause = _SHORTEST
        was_fed = self.is_fed
        while not self.is_done and time.monotonic() < until:
            await self._look_around()
            moved = await self._feed() + await self._collect()
            if self._harvest.size >= self._settings.flush_bytes or self._harvest.age >= self._settings.flush_seconds:
                await self.commit()
            if self.is_fed and not was_fed:
                return False
            pause = _SHORTEST if moved else min(pause * 2, _LONGEST)
            if not self.is_done:
                await asyncio.sleep(0 if moved >= _CHUNK else pause)
        await self.commit()
        return self.is_done

    async def close(self) -> None:
        """Ends what still reads the input. What was not committed, others do again."""
        following, self._following = self._following, None
        if following is not None:
            with suppress(StorageError, InputChanged, BadRow):
                await following

    async def commit(self) -> None:
        """Makes all durable that came. Raises StorageError, LeaseLost."""
        owned, harvest = self._owned, self._harvest
        progress = ShardProgress(
            page=self._page,
            under_way=tuple(self._under_way.values()),
            expired=self._expired,
            done=self.is_done,
        )
        if progress == owned.progress and not harvest.size:
            return
        name = f"{owned.shard:04d}-{owned.revision:08d}-{owned.token}"
        output = await asyncio.to_thread(harvest.output.write, owned.batch, f"{name}-output.jsonl")
        errors = await asyncio.to_thread(harvest.errors.write, owned.batch, f"{name}-errors.jsonl")
        try:
            await self._store.commit(owned, progress, harvest.counts, output, errors, harvest.numbers)
        except LeaseLost:
            await withdraw(self._store, owned, [part for part in (output, errors) if part is not None])
            raise
        self._harvest = Harvest()
        if harvest.places:
            await self._jobs.forget([self._jobs.id(number) for number in harvest.numbers])
            await self._store.forgot(owned)

    async def retreat(self) -> None:
        """After LeaseLost: ends jobs that nobody wants."""
        made: list[Line | Place] = [*self._under_way.values(), *self._harvest.places]
        await end_what_is_over(self._store, self._jobs, self._owned, made, self._lines)

    async def give_up(self) -> None:
        """Ends what is under way, for a file that cannot be read on. Raises what `commit` does."""
        await self.close()
        self.is_fed = True
        # Jobs that are gone cannot be made anew.
        self._lost_at = float("inf")
        await self._collect()
        await self._end(CANCELLED, await self._store.now())
        self._abandon()
        await self.commit()

    async def _look_around(self) -> None:
        """Learns whether the batch is to end."""
        owned = self._owned
        if owned.is_lost:
            raise LeaseLost(f"{owned.batch.id}: somebody else works on it")
        if owned.failure is not None:
            raise InputChanged(owned.failure.message)
        now = await self._store.now()
        if self._ending is None:
            if owned.cancel is not None:
                await self._end(CANCELLED, owned.cancel)
            elif self._expired or now >= owned.batch.expires_at:
                self._expired = True
                await self._end(EXPIRED, min(now, owned.batch.expires_at))
        elif now - self._ending_at > self._settings.ending:
            self._abandon()

    async def _end(self, code: str, since: float) -> None:
        """`since`: Unix time, which every turn agrees on."""
        self._ending, self._ending_at = code, since
        await self._jobs.cancel(list(self._under_way))

    def _abandon(self) -> None:
        """Whoever still works on these has had its time."""
        for job_id, line in list(self._under_way.items()):
            self._harvest.fail(line, unanswered(job_id, line.custom_id, self._ending or CANCELLED))
            del self._under_way[job_id]

    async def _feed(self) -> int:
        """Makes jobs of the next lines, while there is room; returns how many lines it took."""
        room = self._settings.window - len(self._under_way)
        if self.is_fed or room < min(_CHUNK, self._settings.window):
            return 0
        if (self._lines is None or self._lines.is_fed) and not await self._turn_page():
            return 0
        assert self._lines is not None
        lines = self._lines.take(min(_CHUNK, room), _CHUNK_BYTES)
        if self._ending is not None:
            for line in lines:
                self._skip(line)
        else:
            await self._submit(lines)
        self._page = self._lines.page
        return len(lines)

    async def _turn_page(self) -> bool:
        """Whether there is another page."""
        following = self._following or self._read_page()
        self._following = None
        try:
            self._lines = await following
        except BadRow as e:
            raise InputChanged(f"{self._owned.batch.input} changed: {e}") from e
        if self._lines is None:
            self.is_fed = True
            return False
        self._page = self._lines.page
        self._following = self._read_page()
        return not self._lines.is_fed or await self._turn_page()

    def _read_page(self) -> asyncio.Task[Lines | None]:
        return asyncio.create_task(asyncio.to_thread(self._pages.read))

    async def _submit(self, lines: list[RawLine]) -> None:
        submissions, started = [], {}
        refusals: list[tuple[RawLine, bytes]] = []
        for line in lines:
            row = self._row(line)
            job_id = self._jobs.id(line.number)
            try:
                submissions.append(await self._jobs.prepare(row, job_id))
            except (InvalidRequest, ApiError) as e:
                refusals.append((line, refused(row.url, job_id, row.custom_id, e)))
                continue
            started[job_id] = Line(line.number, line.offset, line.length, row.custom_id)
        if submissions:
            await self._jobs.submit(submissions)
        # Now that nothing can fail any more: all of the lines count, or none.
        self._under_way |= started
        for refusal in refusals:
            self._harvest.fail(*refusal)

    def _row(self, line: RawLine) -> Row:
        try:
            return self._reader.row(line)
        except BadRow as e:
            # It was right when it was validated.
            raise InputChanged(f"line {line.number} of {self._owned.batch.input} changed: {e}") from e

    def _skip(self, line: RawLine) -> None:
        job_id = self._jobs.id(line.number)
        self._harvest.fail(line, unanswered(job_id, self._row(line).custom_id, self._ending or CANCELLED))

    async def _collect(self) -> int:
        """Returns how many results there were."""
        if time.monotonic() - self._lost_at > _LOST_EVERY:
            await self._find_lost()
            self._lost_at = time.monotonic()
        found = await self._jobs.results(self._looked_for())
        for job_id, result, request in found:
            line = self._under_way.pop(job_id)
            if self._ending is not None and result.error is not None and result.error.code == "cancelled":
                self._harvest.fail(line, unanswered(job_id, line.custom_id, self._ending))
                continue
            data, good = answered(self._owned.batch.endpoint, job_id, line.custom_id, result, request)
            if not good:
                self._expired = self._expired or result.state is JobState.EXPIRED
                self._harvest.fail(line, data)
                continue
            self._harvest.answer(line, data, result.usage)
        return len(found)

    def _looked_for(self) -> list[str]:
        """They end about in the order in which they were made."""
        if time.monotonic() - self._all_at < _ALL_EVERY:
            return list(itertools.islice(self._under_way, _FRONT))
        self._all_at = time.monotonic()
        return list(self._under_way)

    async def _find_lost(self) -> None:
        """Jobs that are gone, results included, are made anew: Redis lost them, or nobody collected them in time."""
        gone = await self._jobs.lost(list(self._under_way))
        for job_id in gone:
            line = self._under_way[job_id]
            found = await asyncio.to_thread(self._reader.again, line)
            if found is None:
                raise InputChanged(f"{self._owned.batch.input} has no line {line.number} any more")
            del self._under_way[job_id]
            if self._ending is not None:
                self._skip(found)
            else:
                await self._submit([found])
