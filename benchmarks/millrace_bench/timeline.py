"""When the tokens of one request came out, and whether that was soon enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .arrivals import Arrival


@dataclass(slots=True)
class Timeline:
    """One request while it is answered; all times in seconds after the start of the run.

    Waits are counted from when the request was due, so a sender or an engine that is late is seen.
    """

    arrival: Arrival
    #: When it was handed over.
    sent: float = 0.0
    #: When each piece of its answer came, of one or more tokens.
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    #: Tokens of its prompt that the prefix cache had.
    cached: int = 0
    ended: float = 0.0

    def add(self, now: float, tokens: int) -> None:
        """A piece of the answer."""
        self.times.append(now)
        self.tokens += tokens
        self.ended = now

    @property
    def ttft(self) -> float:
        """To the first token."""
        return self.times[0] - self.arrival.due

    @property
    def e2e(self) -> float:
        """To the end."""
        return self.ended - self.arrival.due

    @property
    def gaps(self) -> list[float]:
        """Between one piece and the next: what a reader sees as a pause."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]

    @property
    def tpot(self) -> float:
        """Mean seconds a token after the first; 0 for an answer of one token."""
        return (self.times[-1] - self.times[0]) / (self.tokens - 1) if self.tokens > 1 else 0.0

    def check(self, number: int) -> None:
        """Raises RuntimeError unless the answer has its length."""
        wanted = self.arrival.job.max_tokens
        if self.tokens != wanted:
            raise RuntimeError(f"request {number} had {self.tokens} tokens, not {wanted}")


#: What can be limited, under vLLM's names and one of ours: `itl` is the longest gap of an answer, not the mean.
LIMITS: dict[str, Callable[[Timeline], float]] = {
    "ttft": lambda timeline: timeline.ttft,
    "tpot": lambda timeline: timeline.tpot,
    "itl": lambda timeline: max(timeline.gaps, default=0.0),
    "e2el": lambda timeline: timeline.e2e,
}


def parse_limits(text: str | None) -> dict[str, float]:
    """Milliseconds by name, from "ttft:500,itl:50"; none from None. Raises ValueError."""
    limits: dict[str, float] = {}
    for part in text.split(",") if text is not None else ():
        name, _, number = part.strip().partition(":")
        try:
            limits[name] = float(number)
        except ValueError:
            limits[name] = -1.0
        if name not in LIMITS or not limits[name] > 0:
            raise ValueError(
                f"--goodput has {part!r}; it takes name:milliseconds with commas between, of {', '.join(LIMITS)}"
            )
    return limits


def is_good(timeline: Timeline, limits: dict[str, float]) -> bool:
    """Whether a request kept all limits."""
    return all(LIMITS[name](timeline) * 1000 <= most for name, most in limits.items())
