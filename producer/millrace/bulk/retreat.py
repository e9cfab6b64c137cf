"""What a process takes back that has worked on after another one had its shard. None of it raises: it is all extra."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from contextlib import suppress

from millrace_schemas import MillraceError
from millrace_schemas.batch import Line, Page, Part

from .jobs import BatchJobs
from .output import Place, remove_part
from .pages import Lines
from .store import BatchStore, Owned


async def withdraw(store: BatchStore, owned: Owned, parts: Iterable[Part]) -> None:
    """Removes what was written for a commit that came too late. If the commit was made after all, it stays."""
    with suppress(MillraceError):
        committed = {part.name for file in await store.parts(owned.batch.id) for part in file}
        for part in parts:
            if part.name not in committed:
                await asyncio.to_thread(remove_part, owned.batch, part.name)


async def end_what_is_over(
    store: BatchStore, jobs: BatchJobs, owned: Owned, made: Iterable[Line | Place], page: Lines | None
) -> None:
    """Ends the jobs of those lines that had ended elsewhere before jobs of them were `made` here; others are wanted.

    `page`: the one that was fed here last.
    """
    with suppress(MillraceError):
        progress = await store.progress_of(owned)
        wanted = {line.number for line in progress.under_way}
        over = [
            jobs.id(line.number)
            for line in made
            if line.number not in wanted and (progress.done or _was_a_job(line, progress.page, page))
        ]
        await jobs.cancel(over)
        await jobs.forget(over)


def _was_a_job(line: Line | Place, page: Page | None, lines: Lines | None) -> bool:
    """Whether its shard has come beyond `line` when it is at `page`."""
    if page is None or line.offset >= page.end:
        return False
    if line.offset < page.offset:
        return True
    if lines is None or lines.page.offset != page.offset:
        return False
    # Within a page, lines have an order of their own, the same wherever it is read.
    return any(fed.number == line.number for fed in itertools.islice(lines.lines, page.fed))
