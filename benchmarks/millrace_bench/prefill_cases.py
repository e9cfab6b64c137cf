"""Prefill attention over a paged cache, as cases of the kernel benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from millrace_kernels import paged_prefill, prefill_arrivals
from millrace_kernels._hopper_prefill import takes_prefill
from millrace_worker.models.config import ModelConfig

from .attention_cases import BLOCK_SIZE, AttentionSizes, Contexts, keys_and_values, last_tokens, paged_cache, through
from .kernel_case import CHECKED_ROWS, Case, difference


@dataclass(frozen=True, slots=True)
class Prefill:
    """So many prompts of so many tokens each, behind so many that are cached."""

    prompts: int
    tokens: int
    cached: int = 0
    #: Whether it goes through the kernel for Hopper, and whether that one reads contexts in parts.
    hopper: bool = False
    parts: bool = False

    @property
    def name(self) -> str:
        behind = f" behind {self.cached:,}" if self.cached else ""
        how = ", in parts" if self.parts else ", for Hopper" if self.hopper else ""
        return f"paged_prefill, {self.prompts} x {self.tokens:,}{behind}{how}"

    @property
    def context(self) -> int:
        return self.cached + self.tokens


def prefills(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, context: int, sizes: AttentionSizes
) -> Iterator[Prefill]:
    """One prompt of the contexts' length, then `sizes`' own; for Hopper, too, where there is a kernel for them."""
    q = torch.empty(1, config.num_heads, config.head_dim, device=device, dtype=dtype)
    kv = torch.empty(1, 2, config.num_kv_heads, BLOCK_SIZE, config.head_dim, device=device, dtype=dtype)
    for prompts, tokens, cached in ((1, context, 0), (sizes.prompts, sizes.prompt, 0), (1, sizes.after, sizes.cached)):
        yield Prefill(prompts, tokens, cached)
        if takes_prefill(q, kv, tokens):
            yield Prefill(prompts, tokens, cached, hopper=True)
            if cached:
                yield Prefill(prompts, tokens, cached, hopper=True, parts=True)


def prefill_case(config: ModelConfig, device: torch.device, dtype: torch.dtype, wanted: Prefill) -> Case:
    heads, kv_heads, dim, scale = config.num_heads, config.num_kv_heads, config.head_dim, config.head_dim**-0.5
    prompts, tokens, context = wanted.prompts, wanted.tokens, wanted.context
    contexts = Contexts(wanted.name, np.full(prompts, context, dtype=np.int32))
    cache, tables = paged_cache(config, device, dtype, contexts, 1)
    lens = torch.from_numpy(contexts.lens).to(device)
    q = torch.randn(prompts * tokens, heads, dim, device=device, dtype=dtype)
    bounds = torch.arange(0, prompts * tokens + 1, tokens, dtype=torch.int32, device=device)
    arrivals = prefill_arrivals(device) if wanted.parts else None
    k, v = torch.randn(2, prompts, kv_heads, context, dim, device=device, dtype=dtype)
    queries = q.view(prompts, tokens, heads, dim).transpose(1, 2)
    # Behind cached tokens its causal mask would be another one: torch computes a bit more there than is seen.
    causal = not wanted.cached

    def torchs(_: int) -> torch.Tensor:
        return scaled_dot_product_attention(queries, k, v, is_causal=causal, scale=scale, enable_gqa=True)

    @through(hopper=wanted.hopper)
    def ours(_: int) -> torch.Tensor:
        return paged_prefill(q, cache[:, 0], tables, bounds, lens, tokens, scale, arrivals=arrivals)

    def wrong() -> str:
        result = ours(0)
        for prompt in (0, prompts - 1):
            keys, values = keys_and_values(cache[:, 0], tables[prompt], context)
            last = slice((prompt + 1) * tokens - min(tokens, CHECKED_ROWS), (prompt + 1) * tokens)
            found = difference(result[last], last_tokens, q[last], keys, values)
            if found:
                return f"prompt {prompt}: {found}"
        return ""

    operations = 2.0 * heads * dim * prompts * tokens * (tokens + 2 * wanted.cached)
    return Case(wanted.name, prompts * tokens, operations, "TFLOP/s", ours, torchs, 1, wrong)
