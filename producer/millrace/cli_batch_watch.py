"""`--watch` of `millrace batch`: a bar in a terminal, a line for every change elsewhere, JSON for programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.live import Live

from millrace_schemas import QueueUnavailable
from millrace_schemas.batch import BATCH_TERMINAL

from . import config
from .bulk.errors import BatchNotFound
from .bulk.glance import Glance, Paces
from .bulk.store import BatchStore, View
from .cli_output import print_json
from .cli_progress import line_of, render
from .connection import Connection
from .termination import terminated_as_exit

#: Seconds between two looks, and those that one look tries to reach Redis: the next one is the retry.
_EVERY = 0.5
_RETRY = 1.0

Look = tuple[View, Glance] | QueueUnavailable


def watch(redis_url: str | None, batch_id: str, as_dict: Callable[[View], dict[str, Any]], as_json: bool) -> View:
    """Shows a batch until it has ended; `as_dict` is how programs see it.

    Redis may go away meanwhile. Ctrl-C ends this and not the batch. Raises BatchNotFound, QueueUnavailable.
    """
    console = Console()

    async def run() -> View:
        connection = Connection(config.redis_url(redis_url), retry_for=_RETRY)
        try:
            store = BatchStore(connection)
            # Outside of the loop: what cannot be seen at all is an error, and not worth waiting for.
            paces = Paces()
            first = await _look(store, paces, batch_id)
            looks = _looks(store, paces, batch_id, first)
            if as_json:
                return await _print_json(looks, as_dict)
            if console.is_terminal:
                return await _draw(console, looks, first)
            return await _print_lines(looks)
        finally:
            await connection.close()

    with terminated_as_exit(), _leaving(batch_id):
        return asyncio.run(run())


async def _look(store: BatchStore, paces: Paces, batch_id: str) -> tuple[View, Glance]:
    view = await store.view(batch_id)
    return view, paces.glance(view, await store.now())


async def _looks(
    store: BatchStore, paces: Paces, batch_id: str, first: tuple[View, Glance]
) -> AsyncIterator[Look]:  # fmt: skip
    """`first` and what is there after every interval, or why nobody knows, until it has ended."""
    look: Look = first
    while True:
        yield look
        if not isinstance(look, QueueUnavailable) and look[0].batch.status in BATCH_TERMINAL:
            return
        await asyncio.sleep(_EVERY)
        try:
            look = await _look(store, paces, batch_id)
        except QueueUnavailable as e:
            look = e


async def _draw(console: Console, looks: AsyncIterator[Look], first: tuple[View, Glance]) -> View:
    view, glance = first
    with Live(render(glance), console=console, refresh_per_second=4) as live:
        async for look in looks:
            if isinstance(look, QueueUnavailable):
                live.update(render(glance, away=_away(look)))
            else:
                view, glance = look
                live.update(render(glance), refresh=glance.is_over)
    return view


async def _print_lines(looks: AsyncIterator[Look]) -> View:
    return await _changes(looks, lambda view, glance: typer.echo(line_of(glance)))


async def _print_json(looks: AsyncIterator[Look], as_dict: Callable[[View], dict[str, Any]]) -> View:
    return await _changes(looks, lambda view, glance: print_json({**as_dict(view), "progress": glance}))


async def _changes(looks: AsyncIterator[Look], show: Callable[[View, Glance], None]) -> View:
    """Shows each state once; an outage is told of on standard error, once likewise."""
    shown: tuple[object, ...] | None = None
    last: View | None = None
    away = False
    async for look in looks:
        if isinstance(look, QueueUnavailable):
            if not away:
                typer.echo(f"millrace: {_away(look)}", err=True)
            away = True
            continue
        if away:
            typer.echo("millrace: Redis is back", err=True)
        away = False
        last, glance = look
        if glance.state != shown:
            shown = glance.state
            show(last, glance)
    if last is None:
        raise BatchNotFound("nothing was seen of the batch")
    return last


def _away(error: QueueUnavailable) -> str:
    return " ".join(f"not up to date, and still trying: {error}".split())


@contextmanager
def _leaving(batch_id: str) -> Any:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        typer.echo(
            "millrace: not watched any more; the batch goes on\n"
            f"  watch it again: millrace batch status {batch_id} --watch\n"
            f"  end it:         millrace batch cancel {batch_id}",
            err=True,
        )
        raise
