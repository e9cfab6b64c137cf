"""`millrace bench throughput`: fixed workloads through the engine alone, through Redis, and through other engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from millrace.termination import terminated_as_exit
from millrace_schemas import MillraceError

from . import workloads
from .comparison import PEERS, PeerOptions, make_bench, parse_arguments, parse_peers, run_engine
from .models import MODELS, model_directory
from .recording import Recording
from .redis_bench import run_through_redis
from .results import ENGINE, THROUGH_REDIS

RESULTS = Path("benchmarks/results")


def throughput(
    model: Annotated[str, typer.Option(help=f"A shape ({', '.join(MODELS)}), a directory, a hub name, or demo.")],
    workload: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated: {', '.join(workloads.WORKLOADS)}, or a JSONL file, each line {workloads.LINE}; "
            "all: these but mixed8k."
        ),
    ] = "nano",
    load_format: Annotated[str, typer.Option(help="auto, or dummy for random weights.")] = "auto",
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.6,
    repeats: Annotated[int, typer.Option(min=1, help="The fastest counts.")] = 2,
    max_num_seqs: Annotated[int | None, typer.Option(min=1)] = None,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1)] = 8192,
    max_model_len: Annotated[int | None, typer.Option(min=2)] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.9,
    vs: Annotated[str, typer.Option(help=f"Other engines, comma-separated: {', '.join(PEERS)}.")] = "",
    vs_first: Annotated[bool, typer.Option(help="The others run before Millrace: a device may slow when hot.")] = False,
    vs_python: Annotated[str | None, typer.Option(help="The interpreter of vLLM's environment.")] = None,
    vs_pythonpath: Annotated[str | None, typer.Option(help="Directories in front of vLLM's Python path.")] = None,
    vs_args: Annotated[str, typer.Option(help="Arguments of vllm.LLM, a JSON object; the rest is its default.")] = "{}",
    vs_limit: Annotated[float, typer.Option(min=1, help="Most seconds of a workload of transformers.")] = 120.0,
    vs_timeout: Annotated[float, typer.Option(min=1, help="An engine silent for so many seconds has failed.")] = 900.0,
    through_redis: Annotated[bool, typer.Option(help="The jobs also go through Redis and a whole worker.")] = False,
    to_file: Annotated[bool, typer.Option("--save", help="Write the rows to a file of --results-dir.")] = False,
    results_dir: Annotated[Path, typer.Option()] = RESULTS,
    commit: Annotated[str | None, typer.Option(help="The code's, where there is no git.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
) -> None:
    """Fixed workloads, all requests at once, every answer to its full length: the engine alone, without Redis.

    With --vs the same jobs also go through other engines, each in a process of its own, one after the other. One that
    cannot run is a row that says why. Exit code 1 when Millrace itself could not run all of them.
    """
    from .environment import describe
    from .throughput_table import show

    flags = {
        "model": model_directory(model),
        "load_format": load_format,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": gpu_memory_utilization,
    }
    try:
        bench, vocab_size = make_bench(flags, temperature, repeats, lambda size: workloads.named(workload, size))
        options = PeerOptions(vs_python, vs_pythonpath, parse_arguments(vs_args), vs_timeout, vs_limit)
        engines = _engines(vs, first=vs_first, through_redis=through_redis)
        environment = describe(commit)
        record = Recording(
            Path(model).name,
            "throughput" + ("-through-redis" if through_redis else ""),
            [engine for engine in engines if engine in PEERS],
            bench,
            options,
            environment,
            quiet=as_json,
            save_to=results_dir if to_file else None,
        )
    except (MillraceError, ValueError) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    with terminated_as_exit():
        for engine in engines:
            if engine == THROUGH_REDIS:
                record.take(run_through_redis(bench, options.timeout, vocab_size, record.say))
            else:
                record.take(run_engine(engine, bench, options, record.about, record.say))
        record.end()
    if as_json:
        for row in record.rows:
            typer.echo(json.dumps({**flags, "model": model, **row.as_flat(), **environment}))
    elif any(not row.failed for row in record.rows):
        show(Path(model).name, record.rows, environment)
    own = [row for row in record.rows if row.failed and row.engine in (ENGINE, THROUGH_REDIS)]
    for row in own:
        typer.echo(f"error: {row.engine}, {row.workload}: {row.failed} ({row.log})", err=True)
    if own:
        raise typer.Exit(1)


def _engines(vs: str, *, first: bool, through_redis: bool) -> list[str]:
    """In the order in which they run. Raises ValueError."""
    peers = parse_peers(vs)
    own = [ENGINE, THROUGH_REDIS] if through_redis else [ENGINE]
    return peers + own if first else own + peers
