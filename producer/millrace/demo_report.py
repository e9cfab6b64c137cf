"""What a run of the demo showed, in numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from millrace_schemas import JobState, Result, WorkerInfo

#: Answers in the table, spread over the tasks.
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """A question of the demo with the only right answer to it."""

    task: str
    system: str
    user: str
    expected: str


@dataclass(frozen=True, slots=True)
class DemoAnswer:
    prompt: DemoPrompt
    result: Result

    @property
    def right(self) -> bool:
        return self.result.state == JobState.COMPLETED and self.result.text.strip() == self.prompt.expected


@dataclass(frozen=True, slots=True)
class DemoReport:
    """All answers, the seconds from the first submit to the last result, and the workers' last heartbeats."""

    answers: Sequence[DemoAnswer]
    seconds: float
    workers: Sequence[WorkerInfo] = ()

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Id and reason of each job that was not completed."""
        results = [a.result for a in self.answers if a.result.state != JobState.COMPLETED]
        return [(r.id, r.error.message if r.error else str(r.state)) for r in results]

    @property
    def output_tokens(self) -> int:
        return sum(a.result.usage.completion_tokens for a in self.answers)

    @property
    def first_token_seconds(self) -> list[float]:
        """From submit to the first token, of every job that had one, sorted."""
        timings = [a.result.timings for a in self.answers]
        return sorted(t.queued + t.ttft for t in timings if t.ttft is not None)

    @property
    def cached_share(self) -> float | None:
        """Share of prompt tokens that came from the prefix cache; None without prompt tokens."""
        prompt = sum(a.result.usage.prompt_tokens for a in self.answers)
        return sum(a.result.usage.cached_tokens for a in self.answers) / prompt if prompt else None

    @property
    def kv_waste(self) -> float | None:
        """Share of allocated KV slots that held no token, over all steps; None when no worker reported them."""
        allocated = sum(w.kv_allocated_slots for w in self.workers)
        return 1 - sum(w.kv_used_slots for w in self.workers) / allocated if allocated else None

    def as_dict(self) -> dict[str, Any]:
        """The report for programs; times in seconds, shares in [0, 1], null for what nobody measured."""
        ttft = self.first_token_seconds
        return {
            "jobs": len(self.answers),
            "failed": len(self.failures),
            "right": sum(a.right for a in self.answers),
            "seconds": round(self.seconds, 3),
            "output_tokens": self.output_tokens,
            "output_tokens_per_second": round(self.output_tokens / self.seconds, 1) if self.seconds else None,
            "ttft_p50": percentile(ttft, 50),
            "ttft_p95": percentile(ttft, 95),
            "cached_prompt_share": self.cached_share,
            "kv_waste": self.kv_waste,
            "answers": [
                {
                    "id": a.result.id,
                    "task": a.prompt.task,
                    "prompt": a.prompt.user,
                    "expected": a.prompt.expected,
                    "answer": a.result.text,
                    "state": a.result.state,
                    "right": a.right,
                }
                for a in self.answers
            ],
        }

    def print(self, console: Console | None = None) -> None:
        console = console or Console()
        table = Table(title="Some of the answers", title_justify="left")
        for name in ("task", "prompt", "answer", ""):
            table.add_column(name, overflow="fold")
        for answer in self.shown():
            text = answer.result.text if answer.result.error is None else answer.result.error.message
            mark = "[green]✓[/green]" if answer.right else f"[red]✗[/red] {_plain(answer.prompt.expected)}"
            table.add_row(answer.prompt.task, _plain(answer.prompt.user), _plain(text), mark)
        console.print(table)
        # One line in a file; in a terminal it breaks between words.
        console.print(self.line(), soft_wrap=not console.is_terminal, highlight=False)

    def shown(self) -> list[DemoAnswer]:
        """Answers for the table: the first of each task, then the second ones, and so on."""
        ranks: dict[str, int] = {}
        ranked = []
        for i, answer in enumerate(self.answers):
            task = answer.prompt.task
            ranked.append((ranks.get(task, 0), i, answer))
            ranks[task] = ranks.get(task, 0) + 1
        return [answer for _, _, answer in sorted(ranked, key=lambda item: item[:2])[:_SHOWN]]

    def line(self) -> str:
        """The whole run in one line."""
        d = self.as_dict()
        parts = [
            f"{d['jobs']} jobs, {d['failed']} failed, {d['right']} exactly right",
            f"{d['output_tokens_per_second'] or 0:,.0f} output tokens/s",
            f"TTFT p50 {_seconds(d['ttft_p50'])}, p95 {_seconds(d['ttft_p95'])}",
            f"{_percent(d['cached_prompt_share'])} of prompt tokens from the prefix cache",
            f"KV waste {_percent(d['kv_waste'])}",
        ]
        return " · ".join(parts)


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile of sorted values; None of none."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _plain(text: str) -> str:
    """Text that rich shows as it is, on few lines."""
    return text.replace("[", r"\[")[:160]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
