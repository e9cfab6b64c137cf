"""What a run over a workload came to, and files of such rows."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from millrace_schemas import MillraceError

#: The engine alone, and the same behind the queue.
ENGINE, THROUGH_REDIS = "millrace", "millrace-redis"
#: The engine alone, with attention that reads every context by itself.
UNGROUPED = "millrace-ungrouped"
#: What a reader calls an engine.
TITLES = {
    ENGINE: "Millrace",
    THROUGH_REDIS: "Millrace through Redis",
    "vllm": "vLLM",
    "transformers": "transformers",
    UNGROUPED: "Millrace, each context by itself",
}


class ResultsUnreadable(MillraceError):
    """A file of results cannot be read; the message names it."""


class ResultsUnwritable(MillraceError):
    """Results cannot be saved where they were to be; the message names the flag."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One engine on one workload, the better of its runs; or why there is none."""

    engine: str
    workload: str
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    #: Of every run.
    all_seconds: tuple[float, ...] = ()
    output_tok_s: float = 0.0
    total_tok_s: float = 0.0
    #: Of the answers' tokens: below 1 when a time limit cut the run short. Rates are those up to there.
    share: float = 1.0
    #: What only this engine tells.
    figures: dict[str, float] = {}
    #: Why there is no figure; "" when there is one.
    failed: str = ""
    log: str = ""

    @property
    def by_total(self) -> bool:
        """Whether the rate that counts is that of all tokens: nothing is decoded where every answer has one token."""
        return self.share > 0 and self.output_tokens <= self.requests * self.share

    @property
    def rate(self) -> float:
        """Tokens a second, of the kind that counts."""
        return self.total_tok_s if self.by_total else self.output_tok_s

    @property
    def has_rate(self) -> bool:
        """Whether it is about tokens at all."""
        return self.requests > 0

    def as_flat(self) -> dict[str, Any]:
        """For one line of JSON."""
        values = msgspec.to_builtins(self)
        return {**values, **values.pop("figures")}


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of one command, and what one needs to know to believe or repeat them."""

    #: ISO 8601, UTC.
    date: str
    model: str
    #: "throughput", "throughput-vs-vllm", ...
    what: str
    environment: dict[str, str]
    settings: dict[str, Any]
    #: Versions and the like, by engine.
    engines: dict[str, dict[str, str]]
    rows: tuple[Row, ...]

    @property
    def device(self) -> str:
        return self.environment.get("device", "unknown")


def best(engine: str, workload: str, runs: Sequence[dict[str, Any]]) -> Row:
    """The row of these runs, as a peer tells them: the one that got furthest, and of those the fastest."""
    run = max(runs, key=lambda run: (run["share"], -run["seconds"]))
    seconds, prompts, outputs = run["seconds"], run["prompt_tokens"], run["output_tokens"]
    return Row(
        engine=engine,
        workload=workload,
        requests=run["requests"],
        prompt_tokens=prompts,
        output_tokens=outputs,
        seconds=seconds,
        all_seconds=tuple(round(run["seconds"], 3) for run in runs),
        output_tok_s=round(outputs / seconds, 1),
        total_tok_s=round((prompts + outputs) / seconds, 1),
        share=round(run["share"], 4),
        figures=run.get("figures", {}),
    )


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def free_path(directory: Path, results: Results) -> Path:
    """`<date>-<model>-<what>-<device>.json`, numbered from the second one of a day on."""
    stem = "-".join(
        re.sub(r"[^a-z0-9_.]+", "-", part.lower()).strip("-.")
        for part in (results.date[:10], results.model, results.what, results.device)
    )
    numbers = (f"-{n}" if n > 1 else "" for n in range(1, 1000))
    return next(path for number in numbers if not (path := directory / f"{stem}{number}.json").exists())


def prepare(directory: Path) -> None:
    """Makes the directory of --results-dir. Raises ResultsUnwritable when no file can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as e:
        raise ResultsUnwritable(f"--results-dir {directory} cannot be written to: {e.strerror}") from e


def save(path: Path, results: Results) -> None:
    """Writes the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    partial.replace(path)


def load_all(directory: Path) -> list[Results]:
    """All files of the directory, the newest first.

    Raises ResultsUnreadable.
    """
    found = []
    for path in directory.glob("*.json"):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Results))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as e:
            raise ResultsUnreadable(f"{path} is no file of results: {e}") from e
    return sorted(found, key=lambda results: (results.date, results.model, results.what), reverse=True)
