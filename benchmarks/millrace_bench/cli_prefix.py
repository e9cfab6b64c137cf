"""`millrace bench prefix`: what system prompts that requests share gain."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from millrace.termination import terminated_as_exit
from millrace_schemas import MillraceError

from .comparison import PEERS, Bench, PeerOptions, parse_arguments, parse_peers, run_engine
from .models import MODELS, model_directory
from .prefix_bench import Cell, cells, first_tokens, measure, prepare
from .results import Results, Row, free_path, now, save
from .workloads import warm_up

if TYPE_CHECKING:
    from millrace_worker.engine.engine import Engine

#: Not where `millrace bench report` looks: its page is about fixed workloads.
RESULTS = Path("benchmarks/results/prefix")


@dataclass(slots=True)
class _Command:
    """What was asked for, and what has come of it so far."""

    model: str
    bench: Bench
    cells: list[Cell]
    peers: list[str]
    options: PeerOptions
    environment: dict[str, str]
    quiet: bool
    save_to: Path | None = None
    date: str = field(default_factory=now)
    about: dict[str, dict[str, str]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def run(self) -> None:
        """The others first, each in a process of its own: an engine in this one does not give its memory back."""
        path = None if self.save_to is None else free_path(self.save_to, self._results())
        for peer in self.peers:
            self._take(run_engine(peer, self.bench, self.options, self.about, self.say), path)
        self._take(self._own(), path)
        if path is not None:
            self.say(f"saved: {path}")

    def say(self, words: str) -> None:
        if not self.quiet:
            typer.echo(words, err=True)

    def _take(self, rows: Iterator[Row], path: Path | None) -> None:
        for row in rows:
            self.rows.append(row)
            if path is not None:
                save(path, self._results())

    def _own(self) -> Iterator[Row]:
        from millrace_worker import config
        from millrace_worker.engine import garbage
        from millrace_worker.engine.engine import Engine

        engine = Engine(config.load(self.bench.flags).engine)
        thresholds = gc.get_threshold()
        garbage.settle()
        try:
            yield from self._measured(engine)
        finally:
            gc.unfreeze()
            gc.set_threshold(*thresholds)

    def _measured(self, engine: Engine) -> Iterator[Row]:
        prepare(engine, self.bench.temperature)
        own = self.cells[0].own
        for prefix in dict.fromkeys(cell.prefix for cell in self.cells):
            yield from first_tokens(engine, prefix, own, self.bench.temperature)
        for cell in self.cells:
            for row in measure(engine, cell, self.bench.temperature, self.bench.repeats):
                rate = row.failed or f"decode at {row.figures['decode_tok_s']:,.0f} tok/s"
                self.say(f"{row.engine}, {row.workload}: {rate}")
                yield row

    def _results(self) -> Results:
        settings = {"temperature": self.bench.temperature, "repeats": self.bench.repeats, **self.bench.flags}
        settings |= {"own": self.cells[0].own, "answer": self.cells[0].answer}
        # Where the model lies on this machine, as its logs, is nobody's business elsewhere.
        del settings["model"]
        if "vllm" in self.peers:
            settings["vllm"] = self.options.vllm_args
        return Results(
            date=self.date,
            model=self.model,
            what="-vs-".join(["prefix", *self.peers]),
            environment=self.environment,
            settings=settings,
            engines=self.about,
            rows=tuple(msgspec.structs.replace(row, log="") for row in self.rows),
        )


def prefix(
    model: Annotated[str, typer.Option(help=f"A shape ({', '.join(MODELS)}), a directory, a hub name, or demo.")],
    groups: Annotated[
        str, typer.Option(help="Requests behind one system prompt, comma-separated.")
    ] = "4,16,64,256,1024",
    prefixes: Annotated[str, typer.Option(help="Tokens of a system prompt, comma-separated.")] = "512,2048,8192",
    systems: Annotated[str, typer.Option(help="System prompts at once, comma-separated.")] = "1,4",
    own: Annotated[int, typer.Option(min=1, help="Tokens of a request behind the system prompt.")] = 64,
    answer: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    load_format: Annotated[str, typer.Option(help="auto, or dummy for random weights.")] = "auto",
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.6,
    repeats: Annotated[int, typer.Option(min=1, help="With grouping and without, in turn; the fastest count.")] = 2,
    max_num_seqs: Annotated[int | None, typer.Option(min=1)] = None,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1)] = 8192,
    max_model_len: Annotated[int | None, typer.Option(min=2)] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.9,
    vs: Annotated[str, typer.Option(help=f"Other engines, comma-separated: {', '.join(PEERS)}; they run first.")] = "",
    vs_cells: Annotated[
        str, typer.Option(help="What they run, as GROUPxPREFIXxSYSTEMS, comma-separated; 0 systems: nothing is shared.")
    ] = "all",
    vs_python: Annotated[str | None, typer.Option(help="The interpreter of vLLM's environment.")] = None,
    vs_pythonpath: Annotated[str | None, typer.Option(help="Directories in front of vLLM's Python path.")] = None,
    vs_args: Annotated[str, typer.Option(help="Arguments of vllm.LLM, a JSON object; the rest is its default.")] = "{}",
    vs_timeout: Annotated[float, typer.Option(min=1, help="An engine silent for so many seconds has failed.")] = 900.0,
    to_file: Annotated[bool, typer.Option("--save", help="Write the rows to a file of --results-dir.")] = False,
    results_dir: Annotated[Path, typer.Option()] = RESULTS,
    commit: Annotated[str | None, typer.Option(help="The code's, where there is no git.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
) -> None:
    """Requests behind system prompts that they share, on one engine that reads these once for all, and that does not.

    Of each group: tokens a second of decode, of the whole run, and how often the prefill computed the system prompt.
    Then the same for requests that share nothing, and first tokens behind a new prefix and a cached one.
    Exit code 1 when Millrace cannot be measured at all.
    """
    from .environment import describe
    from .prefix_table import show

    flags = {
        "model": model_directory(model),
        "load_format": load_format,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": gpu_memory_utilization,
    }
    try:
        wanted = cells(
            _numbers("groups", groups, 1),
            _numbers("prefixes", prefixes, 1),
            _numbers("systems", systems, 1),
            own,
            answer,
        )
        peers = parse_peers(vs)
        bench = _bench(flags, _chosen(vs_cells, wanted) if peers else [], temperature, repeats)
        options = PeerOptions(vs_python, vs_pythonpath, parse_arguments(vs_args), vs_timeout)
        quiet, environment = as_json, describe(commit)
        command = _Command(
            Path(model).name, bench, wanted, peers, options, environment, quiet, results_dir if to_file else None
        )
        with terminated_as_exit():
            command.run()
    except (MillraceError, ValueError) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    if as_json:
        for row in command.rows:
            typer.echo(json.dumps({**flags, "model": model, **row.as_flat(), **environment}))
    else:
        show(command.model, command.rows, environment)


def _bench(flags: Mapping[str, Any], chosen: list[Cell], temperature: float, repeats: int) -> Bench:
    """What all engines are given; the others run the chosen cells. Raises MillraceError, ValueError."""
    from millrace_worker import config
    from millrace_worker.model_path import resolve_model
    from millrace_worker.models.config import load_config

    load_format = config.load(flags).engine.load_format
    directory = resolve_model(flags["model"])
    shape = load_config(directory)
    return Bench(
        directory,
        load_format,
        temperature,
        repeats,
        {**flags, "model": str(directory.absolute())},
        shape.max_context,
        warm_up(shape.vocab_size),
        [(cell.name, cell.jobs(shape.vocab_size)) for cell in chosen],
    )


def _numbers(flag: str, text: str, least: int) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = [least - 1]
    if min(numbers) < least:
        raise ValueError(f"--{flag} is {text!r}; it takes numbers from {least} on, with commas between them")
    return list(dict.fromkeys(numbers))


def _chosen(text: str, wanted: list[Cell]) -> list[Cell]:
    if text == "all":
        return wanted
    by_key = {cell.key: cell for cell in wanted}
    keys = [key.strip() for key in text.split(",") if key.strip()]
    unknown = [key for key in keys if key not in by_key]
    if unknown or not keys:
        raise ValueError(f"--vs-cells is {text!r}; those that are measured are {', '.join(by_key)}")
    return [by_key[key] for key in dict.fromkeys(keys)]
