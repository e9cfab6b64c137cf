"""`millrace bench latency`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millrace.termination import terminated_as_exit
from millrace_schemas import MillraceError

from . import workloads
from .arrivals import parse_rates
from .models import MODELS, model_directory
from .timeline import LIMITS, parse_limits

if TYPE_CHECKING:
    from .latency import Load

_REQUESTS = 200


def latency(
    model: Annotated[str, typer.Option(help=f"A shape ({', '.join(MODELS)}), a directory, a hub name, or demo.")],
    workload: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(workloads.WORKLOADS)}, or a JSONL file, each line {workloads.LINE}. Requests "
            "beyond its own are the same again with other token ids, so that the prefix cache finds nothing of them."
        ),
    ] = "chat",
    load_format: Annotated[str, typer.Option(help="auto, or dummy for random weights.")] = "auto",
    rates: Annotated[str, typer.Option(help="Requests a second, comma-separated; inf is all at once.")] = "1,4,16,inf",
    requests: Annotated[
        int | None, typer.Option(min=1, help=f"At each rate. Default: {_REQUESTS}, or a file's lines, each once.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Of arrivals at each rate, instead.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same arrivals.")] = 0,
    burstiness: Annotated[float, typer.Option(min=0.01, help="1 is Poisson, lower burstier, higher evener.")] = 1.0,
    goodput: Annotated[
        str | None,
        typer.Option(help=f"Limits in ms, as ttft:500,itl:50; of {', '.join(LIMITS)}; itl is of every gap."),
    ] = None,
    through_redis: Annotated[bool, typer.Option(help="A Redis, a worker and a client instead of an engine.")] = False,
    long_prefill_token_thresholds: Annotated[str, typer.Option(help="Comma-separated; each is tried.")] = "0",
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.6,
    max_num_seqs: Annotated[int | None, typer.Option(min=1)] = None,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1)] = 8192,
    max_model_len: Annotated[int | None, typer.Option(min=2)] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.9,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a threshold and rate.")] = False,
) -> None:
    """Requests that arrive on their own at given rates: first tokens, every gap between tokens, ends, and goodput."""
    from .environment import describe
    from .latency import Load
    from .latency_table import show

    settings = {
        "model": model_directory(model),
        "load_format": load_format,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": gpu_memory_utilization,
    }
    try:
        if requests is not None and seconds is not None:
            raise ValueError("give --requests or --seconds, not both")
        load = Load(
            rates=tuple(parse_rates(rates)),
            requests=_requests(workload, requests, seconds),
            seconds=seconds,
            seed=seed,
            burstiness=burstiness,
            temperature=temperature,
            limits=parse_limits(goodput),
            thresholds=_thresholds(long_prefill_token_thresholds),
        )
        with terminated_as_exit():
            rows = list(_rows(settings, workload, load, through_redis=through_redis))
    except (MillraceError, RuntimeError, ValueError) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    environment = describe()
    if as_json:
        common = {"model": model, "workload": workload, "seed": seed, "burstiness": burstiness, "goodput": goodput}
        for row in rows:
            typer.echo(json.dumps({**settings, **common, "through_redis": through_redis, **row, **environment}))
    else:
        way = "through Redis" if through_redis else "engine alone"
        show(f"Millrace, {model}, {workload}: {way}", rows, environment)


def _requests(workload: str, requests: int | None, seconds: float | None) -> int | None:
    """None: those of a file, each once, unless `seconds` count."""
    is_file = workload not in workloads.WORKLOADS
    return requests if requests is not None or seconds is not None or is_file else _REQUESTS


def _rows(settings: Mapping[str, Any], workload: str, load: Load, *, through_redis: bool) -> Iterator[dict[str, Any]]:
    """Everything that can be refused is so before an engine or a worker is started."""
    from millrace_worker import config
    from millrace_worker.model_path import resolve_model
    from millrace_worker.models.config import load_config

    engine_config = config.load(settings).engine
    vocab_size = load_config(resolve_model(settings["model"])).vocab_size
    jobs = workloads.one(workload, vocab_size)
    if through_redis:
        from . import latency_queue

        yield from latency_queue.measure(settings, jobs, vocab_size, load, _say)
        return
    from millrace_worker.engine.engine import Engine

    from . import latency as engine_alone

    yield from engine_alone.measure(Engine(engine_config), jobs, load, _say)


def _say(words: str) -> None:
    typer.echo(words, err=True)


def _thresholds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(threshold) for threshold in text.split(","))
    except ValueError:
        found = (-1,)
    if min(found) < 0:
        raise ValueError(
            f"--long-prefill-token-thresholds is {text!r}; it takes numbers from 0 on, with commas between"
        )
    return found
