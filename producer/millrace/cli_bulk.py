"""`millrace bulk`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from . import config
from .bulk.settings import BulkSettings
from .cli_output import LogFormat, LogLevel, RedisUrl
from .extra_commands import CommandNotInstalled
from .termination import terminated_as_exit

_DEFAULTS = BulkSettings()


def bulk(
    workers: Annotated[int, typer.Option(min=1, help="Processes, each of which works on one file at a time.")] = 1,
    window: Annotated[int, typer.Option(min=1, help="Jobs of a shard in the queue at once.")] = _DEFAULTS.window,
    lease: Annotated[
        float, typer.Option(min=2.0, metavar="SECONDS", help="After which a file whose process died is taken up again.")
    ] = _DEFAULTS.lease,
    flush: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Longest time that an answer is not durable yet.")
    ] = _DEFAULTS.flush_seconds,
    log_level: Annotated[LogLevel, typer.Option(help="Least that is logged; info has a line for each batch.")] = "info",
    log_format: LogFormat = "auto",
    redis_url: RedisUrl = None,
) -> None:
    """Work off bulk files: an RQ worker with its scheduler. Several may run; all of it may be killed at any time."""
    from . import logs

    try:
        from .bulk.service import BulkService
        from .bulk.tasks import Runtime
    except ImportError as e:
        raise CommandNotInstalled(f'`millrace bulk` is not installed ({e}); run: pip install "millrace[bulk]"') from e

    settings = replace(_DEFAULTS, window=window, lease=lease, flush_seconds=flush)
    logs.configure(log_level, log_format)
    with terminated_as_exit():
        try:
            typer.echo("millrace bulk: working", err=True)
            BulkService(Runtime(config.redis_url(redis_url), settings), workers).run()
        except KeyboardInterrupt:
            # Ctrl-C is how it ends.
            return
