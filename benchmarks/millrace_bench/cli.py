"""`millrace bench`: measurements, as a table for people or JSON lines for programs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
import structlog
import typer

from millrace.termination import terminated_as_exit
from millrace_schemas import MillraceError

from . import cli_host, cli_latency, cli_picking, cli_prefix, cli_queue, cli_report, cli_throughput
from .models import MODELS, model_directory

app = typer.Typer(no_args_is_help=True, help="Measure engine, queue, gateway and bulk files.")
app.command()(cli_throughput.throughput)
app.command()(cli_latency.latency)
app.command()(cli_host.host)
app.command()(cli_prefix.prefix)
app.command()(cli_picking.picking)
app.command()(cli_queue.queue)
app.command()(cli_report.report)


@app.callback()
def _logs_go_to_stderr() -> None:
    # What an engine in this process says is not part of a table, nor a line of JSON.
    structlog.configure(logger_factory=_stderr)


def _stderr(*_: Any) -> structlog.PrintLogger:
    return structlog.PrintLogger(sys.stderr)


@app.command()
def kernels(
    model: Annotated[str, typer.Option(help=f"A shape ({', '.join(MODELS)}), or a directory with a config.json.")],
    rows: Annotated[str, typer.Option(help="Comma-separated numbers of rows, or of sequences.")] = "1,8,32,64,128,256",
    context: Annotated[int, typer.Option(min=1, help="Tokens of each sequence, and of the prefill.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a figure.")] = False,
) -> None:
    """Each kernel by itself, in bfloat16, beside torch doing the same; needs a CUDA device.

    Results are compared with torch's before they are timed; exit code 1 when one is wrong.
    """
    import torch

    from millrace_worker.models.config import load_config

    from . import kernel_bench
    from .environment import describe
    from .kernel_table import show

    try:
        counts = tuple(int(count) for count in rows.split(","))
        if min(counts) < 1:
            raise ValueError(f"--rows is {rows!r}; every number must be at least 1")
        config = load_config(model_directory(model))
        if not torch.cuda.is_available():
            raise ValueError(f"kernels run on a CUDA device, and torch {torch.__version__} sees none")
        figures = kernel_bench.run(config, torch.device("cuda"), torch.bfloat16, rows=counts, context=context)
    except (MillraceError, ValueError) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    environment = describe()
    if as_json:
        for figure in figures:
            typer.echo(
                json.dumps({"model": model, "context": context, **msgspec.structs.asdict(figure), **environment})
            )
    else:
        show(model, figures, environment)
    if any(figure.failed for figure in figures):
        raise typer.Exit(1)


@app.command()
def gateway(
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each timed part.")] = 10.0,
    polls: Annotated[int, typer.Option(min=1, help="Clients that wait for results, at once.")] = 1000,
    streams: Annotated[int, typer.Option(min=1, help="Clients that read events, at once.")] = 200,
    requests: Annotated[int, typer.Option(min=0, help="Of all kinds, for the growth of memory; 0: none.")] = 200_000,
    connections: Annotated[int, typer.Option(min=0, help="Idle ones, at once; 0: none.")] = 10_000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """The HTTP gateway under many clients, with a worker that costs nothing."""
    from . import gateway_bench
    from .environment import describe_host
    from .gateway_table import show

    environment = describe_host()
    load = gateway_bench.Load(seconds, polls=polls, streams=streams, requests=requests, connections=connections)
    try:
        with terminated_as_exit():
            found = gateway_bench.run(load)
    except (MillraceError, RuntimeError) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    if as_json:
        typer.echo(json.dumps({**asdict(load), **found, **environment}))
    else:
        show(found, environment)


@app.command()
def bulk(
    lines: Annotated[int, typer.Option(min=1, help="Of the large file.")] = 1_000_000,
    line_bytes: Annotated[int, typer.Option(min=300, help="Of each of them.")] = 1000,
    processes: Annotated[int, typer.Option(min=1, help="Of `millrace bulk`.")] = 1,
    demo_lines: Annotated[int, typer.Option(min=0, help="Questions for the demo model; 0: leave it out.")] = 1000,
    seconds: Annotated[float, typer.Option(min=0.0, help="Of interactive jobs beside a file; 0: leave them out.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Of the demo model's part; the fastest counts.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Files of prompts through `millrace bulk`: with a worker that costs nothing, and with the demo model."""
    from . import bulk_bench, bulk_beside
    from .bulk_table import show
    from .environment import describe_host

    environment = describe_host()
    load = bulk_bench.Load(lines=lines, line_bytes=line_bytes, processes=processes)
    try:
        with terminated_as_exit():
            found = bulk_bench.run(load)
            if demo_lines:
                found |= bulk_beside.over_submit_many(demo_lines, repeats)
            if seconds:
                found |= bulk_beside.interactive_beside(seconds, demo_lines or 1000)
    except (MillraceError, RuntimeError) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    if as_json:
        typer.echo(json.dumps({**asdict(load), **found, **environment}))
    else:
        show(found, environment)


@app.command()
def chaos(
    lines: Annotated[int, typer.Option(min=1, help="Of the file.")] = 50_000,
    seed: Annotated[int, typer.Option(help="The same seed kills the same parts at the same times.")] = 1,
    kills_per_minute: Annotated[float, typer.Option(min=0.1, help="And pauses, until the file is done.")] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """A bulk file over HTTP while gateway, bulk services, workers, Redis and S3 are killed: is each line answered once?

    Exit code 1 when anything was lost, repeated or left behind; the evidence then stays in a directory.
    """
    from . import bulk_chaos
    from .bulk_chaos_table import show
    from .environment import describe_host

    environment = describe_host()
    try:
        with terminated_as_exit():
            found = bulk_chaos.run(bulk_chaos.Load(lines=lines, seed=seed, kills_per_minute=kills_per_minute))
    except (MillraceError, RuntimeError) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    if as_json:
        typer.echo(json.dumps({**found, **environment}))
    else:
        show(found, environment)
    if found["faults"]:
        raise typer.Exit(1)
