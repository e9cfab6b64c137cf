"""`millrace submit`."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from millrace_schemas import Finished, InvalidRequest, Lane, Result, Tokens

from .async_job import raise_unless_completed
from .cli_output import AsJson, RedisUrl, connect, print_json
from .client import Job

_SAMPLING = "Sampling"


def submit(
    prompt: Annotated[str, typer.Argument(help="The text, or - to read it from standard input.")],
    model: Annotated[str | None, typer.Option(help="Default: the one registered model.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt; makes PROMPT a chat's user message.")] = None,
    system_file: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Read it from a file.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(rich_help_panel=_SAMPLING, help="Default: up to the model's limit.")
    ] = None,
    min_tokens: Annotated[int | None, typer.Option(rich_help_panel=_SAMPLING, help="No stop before so many.")] = None,
    temperature: Annotated[
        float | None, typer.Option(rich_help_panel=_SAMPLING, help="0 is greedy. Default: 1.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(rich_help_panel=_SAMPLING, help="0 keeps all, the default.")] = None,
    top_p: Annotated[float | None, typer.Option(rich_help_panel=_SAMPLING, help="In (0, 1]. Default: 1.")] = None,
    min_p: Annotated[float | None, typer.Option(rich_help_panel=_SAMPLING, help="In [0, 1]. Default: 0.")] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(rich_help_panel=_SAMPLING, help="Of generated tokens, in [-2, 2].")
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(rich_help_panel=_SAMPLING, help="The same, for each time, in [-2, 2].")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(rich_help_panel=_SAMPLING, help="Of the prompt's tokens, too, in (0, 100].")
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=BIAS", rich_help_panel=_SAMPLING, help="Of a token id, in [-100, 100]. May be repeated."
        ),
    ] = None,
    logprobs: Annotated[
        int | None, typer.Option(rich_help_panel=_SAMPLING, help="Log-probabilities, and the top so many, in --json.")
    ] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=_SAMPLING, help="Makes the answer repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(rich_help_panel=_SAMPLING, help="Ends the answer. May be repeated.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", rich_help_panel=_SAMPLING, help="Go on past the end.")
    ] = False,
    lane: Annotated[Lane, typer.Option()] = Lane.INTERACTIVE,
    result_to: Annotated[str, typer.Option(help='"redis" or "s3://bucket/prefix".')] = "redis",
    deadline: Annotated[float | None, typer.Option(metavar="SECONDS", help="From now; the job then expires.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key makes one job.")] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Have workers keep the system prompt's KV, or that of all of PROMPT.")
    ] = False,
    cache_ttl: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --pin: how long after its last use. Default: 3600.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="A gateway calls it at the job's end.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer and print it.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it is made.")] = False,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Longest wait; the job goes on.")] = None,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
) -> None:
    """Queue one prompt. Prints the job's id, or its answer with --wait or --stream."""
    if system_file is not None:
        if system is not None:
            raise typer.BadParameter("give --system or --system-file, not both", param_hint="--system")
        system = _decode(system_file.read_bytes(), str(system_file))
    sampling: dict[str, Any] = {
        "max_tokens": max_tokens, "min_tokens": min_tokens, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "presence_penalty": presence_penalty, "frequency_penalty": frequency_penalty,
        "repetition_penalty": repetition_penalty, "logit_bias": _biases(logit_bias), "logprobs": logprobs,
        "seed": seed, "stop": stop, "ignore_eos": ignore_eos or None,
    }  # fmt: skip
    with connect(redis_url, model) as client:
        job = client.submit(
            _decode(sys.stdin.buffer.read(), "standard input") if prompt == "-" else prompt,
            system=system,
            sampling={name: value for name, value in sampling.items() if value is not None},
            lane=lane,
            result_to=result_to,
            deadline=None if deadline is None else datetime.timedelta(seconds=deadline),
            stream=stream,
            metadata=_pairs(metadata or ()),
            idempotency_key=idempotency_key,
            cache="pin" if pin else "auto",
            cache_ttl=cache_ttl,
            webhook=webhook,
        )
        if stream:
            _print_stream(job, as_json)
        elif wait:
            _print_result(job.wait(timeout), as_json)
            if pin and (problem := job.record().pin_problem):
                typer.echo(f"not pinned: {problem}", err=True)
        elif as_json:
            print_json({"id": job.id})
        else:
            typer.echo(job.id)


def _print_stream(job: Job, as_json: bool) -> None:
    for event in job.events():
        if as_json:
            print_json(event)
        elif isinstance(event, Tokens):
            typer.echo(event.text, nl=False)
        if isinstance(event, Finished):
            if not as_json:
                typer.echo()
                raise_unless_completed(event.result)
            elif event.result.error is not None:
                raise typer.Exit(1)


def _print_result(result: Result, as_json: bool) -> None:
    if not as_json:
        typer.echo(raise_unless_completed(result).text)
        return
    print_json(result)
    if result.error is not None:
        raise typer.Exit(1)


def _decode(data: bytes, source: str) -> str:
    """Text as typed: without the newline that ends a file."""
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError as e:
        raise InvalidRequest(f"{source} is not UTF-8: {e.reason} at byte {e.start}", param="prompt") from e


def _biases(texts: Iterable[str] | None) -> dict[str, float] | None:
    """Whether the ids are ids, and the numbers in their limits, `submit` checks."""
    if texts is None:
        return None
    biases = {}
    for text in texts:
        token, _, value = text.partition("=")
        try:
            biases[token] = float(value)
        except ValueError:
            raise InvalidRequest(f"logit-bias is ID=BIAS, not {text!r}", param="sampling.logit_bias") from None
    return biases


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidRequest(f"metadata is KEY=VALUE, not {text!r}", param="metadata")
        pairs[key] = value
    return pairs
