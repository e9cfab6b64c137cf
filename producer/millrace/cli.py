"""The command line: the client's commands, those that start servers, and what other packages add."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from rich.table import Table

from millrace_schemas import TERMINAL, MillraceError

from . import cli_batch, cli_bulk, cli_cache, cli_gateway, cli_keys, cli_queue, cli_submit, cli_top, cli_webhooks, up
from .cli_output import AsJson, RedisUrl, connect, print_json, print_table
from .errors import WorkerDied
from .extra_commands import CommandGroup

app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, add_completion=False, help="Queue-driven LLM inference.",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.command("submit")(cli_submit.submit)
app.command("gateway")(cli_gateway.gateway)
app.command("bulk")(cli_bulk.bulk)
app.command("up")(up.up)
app.command("top")(cli_top.top)
app.add_typer(cli_queue.app, name="queue")
app.add_typer(cli_batch.app, name="batch")
app.add_typer(cli_cache.app, name="cache")
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_webhooks.app, name="webhooks")


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"millrace {version('millrace')}")
        except PackageNotFoundError:
            typer.echo("millrace, not installed: run from its source")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Queue-driven LLM inference."""


@app.command()
def get(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    wait: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="Wait this long for the end.")] = 0.0,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Print a job's answer, or why there is none. Exit code 1 unless the job is completed."""
    with connect(redis_url) as client:
        job = client.get(job_id)
        if not as_json:
            typer.echo(job.result(timeout=wait).text)
            return
        record = job.record()
        if wait and record.state not in TERMINAL:
            job.wait(timeout=wait)
            record = job.record()
        result = job.wait(timeout=0) if record.state in TERMINAL else None
        print_json({"record": record, "result": result})
        if result is None or result.error is not None:
            raise typer.Exit(1)


@app.command()
def cancel(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """End a job. Prints its state: `cancelled`, `in_progress` when its worker was told, or the end that it had."""
    with connect(redis_url) as client:
        state = client.cancel(job_id)
        if as_json:
            print_json({"id": job_id, "state": state})
        else:
            typer.echo(state)


@app.command()
def models(as_json: AsJson = False, redis_url: RedisUrl = None) -> None:
    """List the models that workers have registered."""
    with connect(redis_url) as client:
        found = client.models()
    if as_json:
        print_json(found)
        return
    table = Table("model", "longest prompt and answer", "vocabulary", "chat")
    for model in found:
        chat = "yes" if model.has_chat_template else "no"
        table.add_row(model.name, f"{model.max_model_len:,}", f"{model.vocab_size:,}", chat)
    print_table(table)


@app.command()
def demo(
    jobs: Annotated[int, typer.Option(min=1, help="Prompts to submit.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Start a Redis and a worker with the packaged model, run prompts through them, and show what came out."""
    from .demo import run_demo

    report = run_demo(jobs=jobs, seed=seed, quiet=as_json)
    if as_json:
        print_json(report.as_dict())
    else:
        report.print()
    for job_id, error in report.failures:
        typer.echo(f"millrace: {job_id}: {error}", err=True)
    if report.failures:
        raise typer.Exit(1)


def main() -> None:
    """Entry point. Expected errors are one line on standard error and exit code 1; wrong usage is code 2."""
    try:
        app()
    except MillraceError as e:
        typer.echo(f"millrace: {' '.join(str(e).split())}", err=True)
        if isinstance(e, WorkerDied):
            typer.echo(e.log, err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
