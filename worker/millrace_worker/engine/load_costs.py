"""Whether reading KV is quicker than computing it: both rates are learnt from what they took."""

from __future__ import annotations

#: Weight of the newest observation.
_NEWEST = 0.2
#: A step tells how quick prompts are computed if it has so many tokens of prompts, and they are most of it.
_LEAST_TOKENS = 64
#: Of so many decisions against a load one is made for it, so that a disk which was slow once is tried again.
_TRY_AGAIN = 64


class LoadCosts:
    """Rates are None until there is an observation; then a load is tried, to have one."""

    def __init__(self) -> None:
        self.bytes_per_second: float | None = None
        self.tokens_per_second: float | None = None
        self._refused = 0

    def observe_read(self, num_bytes: int, seconds: float) -> None:
        """A load took so long from its first byte to its last."""
        self.bytes_per_second = _mixed(self.bytes_per_second, num_bytes / max(seconds, 1e-6))

    def observe_step(self, prompt_tokens: int, other_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        if prompt_tokens >= max(_LEAST_TOKENS, other_tokens) and seconds > 0:
            self.tokens_per_second = _mixed(self.tokens_per_second, prompt_tokens / seconds)

    def load_seconds(self, num_bytes: int, queued_bytes: int) -> float | None:
        """How long it takes to read so much behind what others wait for."""
        return None if self.bytes_per_second is None else (num_bytes + queued_bytes) / self.bytes_per_second

    def recompute_seconds(self, tokens: int) -> float | None:
        return None if self.tokens_per_second is None else tokens / self.tokens_per_second

    def worth_loading(self, num_bytes: int, queued_bytes: int, tokens: int, *, then: float = 0.0) -> bool:
        """Whether to read `num_bytes`, which hold the KV of so many tokens and are there `then` seconds after that."""
        load, recompute = self.load_seconds(num_bytes, queued_bytes), self.recompute_seconds(tokens)
        if load is None or recompute is None or load + then < recompute:
            return True
        self._refused += 1
        return self._refused % _TRY_AGAIN == 0


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else (1 - _NEWEST) * old + _NEWEST * new
