"""What the commands share: the client, and printing for people and for programs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from . import config
from .client import Client

RedisUrl = Annotated[
    str | None,
    typer.Option(help=f"Default: ${config.REDIS_URL_VARIABLE}, else {config.DEFAULT_REDIS_URL}.", metavar="URL"),
]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Annotated[
    Literal["auto", "json", "console"], typer.Option(help="auto is console in a terminal, else json.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def connect(redis_url: str | None, model: str | None = None) -> Client:
    return Client(config.redis_url(redis_url), model)


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    typer.echo(msgspec.json.encode(value).decode())


def print_table(table: Table) -> None:
    Console().print(table)
