"""Commands of other packages: found through entry points, imported only when they are called.

Where nothing is installed, and the packages are only on Python's path, there are none; ours are then known here.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from millrace_schemas import MillraceError

GROUP = "millrace.commands"

#: What the overview says about a command that it must not import, the extra whose install brings it, and its package.
_KNOWN = {
    "worker": ("Serve a model from its queue.", "worker", "millrace_worker"),
    "bench": ("Measure throughput on fixed workloads.", "worker", "millrace_bench"),
}


class CommandNotInstalled(MillraceError):
    """A command's package cannot be imported; the message names the extra to install."""


class _LazyCommand(TyperCommand):
    """Stands for a command of another package until somebody calls it or asks for its help."""

    def __init__(self, entry_point: EntryPoint):
        self._entry_point = entry_point
        summary, self._extra, _ = _KNOWN.get(entry_point.name, ("", entry_point.name, ""))
        super().__init__(entry_point.name, help=summary)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        # The context carries the command that runs in it, so the real one takes over from here.
        return self._load().make_context(*args, **kwargs)

    def _load(self) -> Any:
        try:
            app = self._entry_point.load()
        except ImportError as e:
            raise CommandNotInstalled(
                f'`millrace {self.name}` is not installed ({e}); run: pip install "millrace[{self._extra}]"'
            ) from e
        return typer.main.get_command(app)


class CommandGroup(TyperGroup):
    """The commands of this package, then those of others."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return own + [name for name in sorted(_others()) if name not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        other = _others().get(cmd_name)
        return None if other is None else _LazyCommand(other)


def _others() -> dict[str, EntryPoint]:
    ours = {
        name: EntryPoint(name, f"{package}.cli:app", GROUP)
        for name, (_, _, package) in _KNOWN.items()
        if find_spec(package)
    }
    return ours | {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}
