"""Whether fetching KV is quicker than computing it: all rates are learnt from what it took."""

from __future__ import annotations

#: Weight of the newest observation.
_NEWEST = 0.2
#: A step tells how quick prompts are computed if it has so many tokens of prompts, and they are most of it.
_LEAST_TOKENS = 64
#: Of so many decisions against a tier one is made for a few of its blocks: what was slow once is tried again.
_TRY_AGAIN = 64


class LoadCosts:
    """Rates are unknown until there is an observation; then a load is tried, to have one.

    A tier's rate is that with which its blocks come into host memory; that of "cpu" is the link's to the device, which
    the blocks of all tiers go over.
    """

    def __init__(self) -> None:
        #: By tier.
        self.bytes_per_second: dict[str, float] = {}
        self.tokens_per_second: float | None = None
        #: For benchmarks: what a tier has is fetched, whatever that takes.
        self.always_load = False
        self._refused: dict[str, int] = {}

    def observe_read(self, tier: str, num_bytes: int, seconds: float) -> None:
        """So much of a tier took so long from its first byte to its last."""
        new = num_bytes / max(seconds, 1e-6)
        self.bytes_per_second[tier] = _mixed(self.bytes_per_second.get(tier), new)

    def observe_step(self, prompt_tokens: int, other_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        if prompt_tokens >= max(_LEAST_TOKENS, other_tokens) and seconds > 0:
            self.tokens_per_second = _mixed(self.tokens_per_second, prompt_tokens / seconds)

    def read_seconds(self, tier: str, num_bytes: int) -> float | None:
        """How long so much takes, that included which others wait for."""
        rate = self.bytes_per_second.get(tier)
        return None if rate is None else num_bytes / rate

    def recompute_seconds(self, tokens: int) -> float | None:
        """None: not known, or not to be asked."""
        if self.tokens_per_second is None or self.always_load:
            return None
        return tokens / self.tokens_per_second

    def refuse(self, tier: str) -> bool:
        """A tier proved too slow for what was asked of it; whether a few blocks are tried all the same."""
        self._refused[tier] = self._refused.get(tier, 0) + 1
        return self._refused[tier] % _TRY_AGAIN == 0


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else (1 - _NEWEST) * old + _NEWEST * new
