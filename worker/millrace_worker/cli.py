"""`millrace worker`: serves one model from its queue until it is told to stop. One flag for each setting of config.py.

Exit codes: 0 drained after a signal; 1 unexpected; 2 a flag, a variable or the model's name cannot be used; 3 Redis
cannot be used; 4 the engine cannot start (no weights, no memory) or be kept running.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import typer

from millrace_schemas import InvalidRequest, QueueUnavailable
from millrace_schemas.telemetry import TracingNotPossible, start_tracing

from . import logs
from .config import SETTINGS, Setting, WorkerConfig, load, traces_wanted
from .errors import ConfigError, EngineDied, ModelError
from .front.engine_link import ENGINE_COMMAND
from .front.text import TextTools
from .service import Service, served_name

USAGE, NO_REDIS, NO_ENGINE = 2, 3, 4

app = typer.Typer(add_completion=False)


def run_worker(
    config: WorkerConfig, *, tools: TextTools | None = None, engine_command: Sequence[str] | None = None
) -> int:
    """Runs a worker until a signal; the exit code. Every expected failure is one line on stderr."""
    logs.configure(config)
    if engine_command is None:
        engine_command = (*ENGINE_COMMAND, "--log-level", config.log_level, "--log-format", config.log_format)
    end_tracing: Callable[[], None] | None = None
    try:
        end_tracing = start_tracing("millrace-worker") if traces_wanted() else None
        if tools is None:
            try:
                config, tools = _load_model(config)
            except ModuleNotFoundError as e:
                return _say(f'not all that it needs is installed ({e}); run: pip install "millrace[worker]"', USAGE)
        asyncio.run(_serve(config, tools, engine_command, traced=end_tracing is not None))
    except (ConfigError, ModelError, InvalidRequest, TracingNotPossible) as e:
        return _say(e, USAGE)
    except QueueUnavailable as e:
        return _say(e, NO_REDIS)
    except EngineDied as e:
        return _say(e, NO_ENGINE)
    finally:
        if end_tracing is not None:
            end_tracing()
    return 0


async def _serve(config: WorkerConfig, tools: TextTools, engine_command: Sequence[str], *, traced: bool) -> None:
    await Service(config, tools, engine_command, traced=traced).run()


def _load_model(config: WorkerConfig) -> tuple[WorkerConfig, TextTools]:
    """Finds the model's directory once, for both processes, and loads its tokenizer here."""
    # Here and not on top: the tokenizer brings transformers, which a wrong flag should not have to wait for.
    from .model_path import resolve_model
    from .stop import StopChecker
    from .tokenizer import Tokenizer

    name = served_name(config)
    path: Path = resolve_model(config.engine.model)
    config = msgspec.structs.replace(
        config,
        engine=msgspec.structs.replace(config.engine, model=str(path)),
        stream=msgspec.structs.replace(config.stream, served_model_name=name),
    )
    return config, TextTools(Tokenizer.load(path), StopChecker)


def _say(error: Exception | str, code: int) -> int:
    print(f"millrace worker: {error}", file=sys.stderr)
    return code


def _flags() -> list[inspect.Parameter]:
    """One option for each field of the configuration; None means that it was not given."""
    parameters = []
    for name, setting in SETTINGS.items():
        option = typer.Option(
            f"--{name.replace('_', '-')}", help=_help(setting), metavar=_metavar(setting), show_default=False
        )
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
            )
        )
    return parameters


def _help(setting: Setting) -> str:
    if setting.default is None:
        return setting.description
    default = f"{setting.default:g}" if isinstance(setting.default, float) else str(setting.default)
    default = default.lower() if isinstance(setting.default, bool) else default
    # Escaped: rich would take it for markup, and show nothing.
    return f"{setting.description} \\[default: {default}]"


def _metavar(setting: Setting) -> str:
    kinds = [kind.__name__ for kind in (bool, int, float) if kind in (setting.type, *get_args(setting.type))]
    return f"<{kinds[0] if kinds else 'str'}>"


def _worker(**flags: Any) -> None:
    """Serve one model from its queue until told to stop (Ctrl-C or SIGTERM drain it).

    Each flag may also be given as an environment variable: MILLRACE_ and its name in capitals. Flags win.
    """
    try:
        config = load(flags)
    except ConfigError as e:
        raise typer.Exit(_say(e, USAGE)) from e
    raise typer.Exit(run_worker(config))


_worker.__signature__ = inspect.Signature(_flags())  # type: ignore[attr-defined]
_worker.__annotations__ = {p.name: p.annotation for p in _flags()}
app.command()(_worker)
