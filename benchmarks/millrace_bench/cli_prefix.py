"""`millrace bench prefix`: what system prompts that requests share gain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from millrace.termination import terminated_as_exit
from millrace_schemas import MillraceError

from .comparison import PEERS, PeerOptions, make_bench, parse_arguments, parse_peers, run_engine
from .models import MODELS, model_directory
from .prefix_bench import Cell, cells
from .recording import Recording
from .results import ENGINE, UNGROUPED
from .tier_options import NONE, TierOptions, parse_tiers

#: Not where `millrace bench report` looks: its page is about fixed workloads.
RESULTS = Path("benchmarks/results/prefix")


def prefix(
    model: Annotated[str, typer.Option(help=f"A shape ({', '.join(MODELS)}), a directory, a hub name, or demo.")],
    groups: Annotated[
        str, typer.Option(help=f"Requests behind one system prompt, comma-separated, or {NONE}.")
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
    tiers: Annotated[
        str, typer.Option(help=f"Of the prefix cache, below the device: cpu, disk, s3, comma-separated, or {NONE}.")
    ] = "cpu,disk",
    cpu_cache_gb: Annotated[float, typer.Option(min=0, help="Host memory of the tier cpu.")] = 4.0,
    disk_cache_dir: Annotated[
        Path | None,
        typer.Option(help="Where a directory for the tier disk is made, and deleted at the end.", show_default="/tmp"),
    ] = None,
    s3_cache: Annotated[
        str | None, typer.Option(help="s3://bucket/prefix of the tier s3; it keeps its records.")
    ] = None,
    s3_endpoint_url: Annotated[str | None, typer.Option(help="For an S3 that is not Amazon's.")] = None,
    restarts: Annotated[int, typer.Option(min=1, help="How often an engine is killed and started again.")] = 3,
    to_file: Annotated[bool, typer.Option("--save", help="Write the rows to a file of --results-dir.")] = False,
    results_dir: Annotated[Path, typer.Option()] = RESULTS,
    commit: Annotated[str | None, typer.Option(help="The code's, where there is no git.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
) -> None:
    """Requests behind system prompts that they share, on one engine that reads these once for all, and that does not.

    Of each group: tokens a second of decode, of the whole run, and how often the prefill computed the system prompt.
    Then the same for requests that share nothing; first tokens behind a prefix that is new, in the device's
    memory, and in each tier below it; and what is left of a pinned prefix after kill -9 and a restart.
    Exit code 1 when Millrace cannot be measured at all.
    """
    from .environment import describe
    from .prefix_run import PrefixRun
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
        lengths = _numbers("prefixes", prefixes, 1)
        counts = [] if groups.strip() == NONE else _numbers("groups", groups, 1)
        wanted = cells(counts, lengths, _numbers("systems", systems, 1), own, answer)
        options_of_tiers = TierOptions(
            tiers=parse_tiers(tiers),
            cpu_cache_gb=cpu_cache_gb,
            disk_cache_dir=disk_cache_dir,
            s3_cache=s3_cache,
            s3_endpoint_url=s3_endpoint_url,
            restarts=restarts,
        )
        options_of_tiers.check(flags)
        peers = parse_peers(vs)
        chosen = _chosen(vs_cells, wanted) if peers else []
        bench, _ = make_bench(
            flags, temperature, repeats, lambda size: [(cell.name, cell.jobs(size)) for cell in chosen]
        )
        options = PeerOptions(vs_python, vs_pythonpath, parse_arguments(vs_args), vs_timeout)
        environment = describe(commit)
        record = Recording(
            Path(model).name,
            "prefix",
            peers,
            bench,
            options,
            environment,
            quiet=as_json,
            save_to=results_dir if to_file else None,
            settings={"own": own, "answer": answer, "tiers": tiers, "cpu_cache_gb": cpu_cache_gb},
        )
        with terminated_as_exit():
            # The others first, in processes of their own: an engine in this one does not give its memory back.
            for peer in peers:
                record.take(run_engine(peer, bench, options, record.about, record.say))
            record.take(PrefixRun(bench, wanted, lengths, own, answer, options_of_tiers, record.say).rows())
            record.end()
    except (MillraceError, OSError, ValueError) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    if as_json:
        for row in record.rows:
            typer.echo(json.dumps({**flags, "model": model, **row.as_flat(), **environment}))
    else:
        show(Path(model).name, record.rows, environment)
    if all(row.failed for row in record.rows if row.engine in (ENGINE, UNGROUPED)):
        raise typer.Exit(1)


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
