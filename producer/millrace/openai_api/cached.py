"""What the prefix cache had of a prompt, beside the counts of tokens."""

from __future__ import annotations

from typing import Any

from millrace_schemas import Usage


def cached_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's count, and where it is not 0 also by tiers, which OpenAI has not and its clients let pass."""
    by_tier = usage.cached_by_tier
    return {"cached_tokens": usage.cached_tokens, **({"cached_by_tier": by_tier} if by_tier else {})}
