"""The rows of a command as they come, saved after each: a run that is cut off keeps what it had."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import typer

from .comparison import Bench, PeerOptions
from .results import Results, Row, free_path, now, prepare, save


class Recording:
    """`settings` are those beyond the bench's own; `what` names the command.

    Raises ResultsUnwritable when nothing can be saved to the directory `save_to`.
    """

    def __init__(
        self,
        model: str,
        what: str,
        peers: Sequence[str],
        bench: Bench,
        options: PeerOptions,
        environment: dict[str, str],
        *,
        quiet: bool,
        save_to: Path | None,
        settings: dict[str, object] | None = None,
    ) -> None:
        if save_to is not None:
            prepare(save_to)
        self.rows: list[Row] = []
        #: What the engines say of themselves, by name.
        self.about: dict[str, dict[str, str]] = {}
        self._quiet = quiet
        every = {"temperature": bench.temperature, "repeats": bench.repeats, **bench.flags, **(settings or {})}
        # Where the model lies on this machine, as its logs, is nobody's business elsewhere.
        del every["model"]
        if "vllm" in peers:
            every["vllm"] = options.vllm_args
        self._head = Results(
            date=now(),
            model=model,
            what="-vs-".join([what, *peers]),
            environment=environment,
            settings=every,
            engines=self.about,
            rows=(),
        )
        self._path = None if save_to is None else free_path(save_to, self._head)

    def say(self, words: str) -> None:
        if not self._quiet:
            typer.echo(words, err=True)

    def take(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.rows.append(row)
            if self._path is not None:
                save(self._path, self._results())

    def end(self) -> None:
        if self._path is not None:
            self.say(f"saved: {self._path}")

    def _results(self) -> Results:
        rows = tuple(msgspec.structs.replace(row, log="") for row in self.rows)
        return msgspec.structs.replace(self._head, rows=rows)
