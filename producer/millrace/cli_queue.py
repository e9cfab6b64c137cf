"""`millrace queue`: the backlog, the workers, and what could not be run."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from .cli_output import AsJson, RedisUrl, connect, print_json, print_table
from .overview_rows import printable
from .queue_stats import QueueStats

app = typer.Typer(no_args_is_help=True, help="Look into a model's queue.")

Model = Annotated[str | None, typer.Option(help="Default: the one registered model.")]
EntryId = Annotated[str, typer.Argument(metavar="ID", help="Of a dead entry, as `queue dead` lists it.")]


@app.command()
def stats(model: Model = None, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Print backlog and workers."""
    with connect(redis_url, model) as client:
        found = client.queue_stats()
        names = [] if found.workers else [info.name for info in client.models()]
    if not found.workers and found.model not in names:
        # An empty queue, which is what a name with a slip in it has, too.
        there = f"; registered: {', '.join(names)}" if names else ""
        typer.echo(f"no worker has registered model {found.model!r}{there}", err=True)
    if as_json:
        print_json(found)
    else:
        _print_stats(found)


@app.command()
def dead(
    model: Model = None,
    count: Annotated[int, typer.Option(min=1, help="Newest entries to list.")] = 100,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """List what could not be run, newest first."""
    with connect(redis_url, model) as client:
        entries = client.dead(count=count)
    if as_json:
        print_json(entries)
        return
    table = Table("entry", "job", "code", "attempts", "reason")
    for entry in entries:
        # Whatever stands in the stream, also what nobody could read: it must not steer the terminal.
        cells = (entry.id, entry.job or "-", entry.code, str(entry.attempts), entry.reason)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    print_table(table)


@app.command()
def requeue(entry_id: EntryId, model: Model = None, as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """Submit a dead entry's request again, as a new job, and drop the entry. Prints the new job's id."""
    with connect(redis_url, model) as client:
        job = client.requeue_dead(entry_id)
        if as_json:
            print_json({"id": job.id})
        else:
            typer.echo(job.id)


@app.command()
def purge(
    entry_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Dead entries to delete.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Delete every dead entry.")] = False,
    model: Model = None,
    redis_url: RedisUrl = None,
) -> None:
    """Delete dead entries. Their jobs' results stay."""
    if bool(entry_ids) == all_:
        raise typer.BadParameter("give entry ids, or --all")
    with connect(redis_url, model) as client:
        typer.echo(client.purge_dead(entry_ids=None if all_ else entry_ids))


def _print_stats(found: QueueStats) -> None:
    lanes = Table("lane", "waiting", "in flight", "oldest waiting")
    for lane, numbers in found.lanes.items():
        age = "-" if numbers.oldest_waiting is None else f"{numbers.oldest_waiting:.1f} s"
        lanes.add_row(lane, str(numbers.waiting), str(numbers.in_flight), age)
    print_table(lanes)
    count = len(found.workers)
    serving = f"{count} worker{'' if count == 1 else 's'}"
    typer.echo(f"model {found.model}: {found.delayed} delayed, {found.dead} dead, {serving}")
    if not found.workers:
        return
    # A name that does not fit goes on in the next line: it is what the logs are searched for.
    workers = Table(
        Column("worker", overflow="fold"), "device", "leased", "running", "waiting", "KV in use", "finished"
    )
    for worker in found.workers:
        workers.add_row(
            Text(printable(worker.name)), Text(printable(worker.device)), str(worker.leased), str(worker.running),
            str(worker.waiting), f"{worker.kv_usage:.0%}", str(worker.finished),
        )  # fmt: skip
    print_table(workers)
