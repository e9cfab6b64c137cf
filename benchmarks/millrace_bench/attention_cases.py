"""Decode attention over a paged cache, as an engine plans it, as cases of the kernel benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from millrace_kernels import (
    DecodePlan,
    PlanShape,
    SharedRun,
    _hopper_attention,
    paged_decode,
    plan_decode,
)
from millrace_worker.engine.graphs import plan_fields
from millrace_worker.engine.packed import PackedInputs, packed_bytes
from millrace_worker.models.config import ModelConfig

from .kernel_case import Case, difference

P = ParamSpec("P")
T = TypeVar("T")

BLOCK_SIZE = 16
_MOST_TURNS = 32
#: Where no device says how many it has.
_PROCESSORS = 132


@dataclass(frozen=True, slots=True)
class AttentionSizes:
    """Contexts that the number of rows and one length for all do not give, in tokens."""

    #: So many sequences of log-uniform lengths in these bounds.
    spread: int = 64
    shortest: int = 128
    longest: int = 8192
    #: Of one sequence alone.
    alone: int = 32768
    #: So many sequences behind tokens that they share, each with some of its own.
    group: int = 256
    common: int = 2048
    own: int = 128
    #: So many prompts of so many tokens in one prefill, beside one of the contexts' length.
    prompts: int = 4
    prompt: int = 2048
    #: One prompt of so many tokens of its own behind so many that are cached.
    after: int = 64
    cached: int = 8192


@dataclass(frozen=True, slots=True)
class Contexts:
    """The contexts of a launch, and how they lie in the cache."""

    name: str
    lens: np.ndarray  # [S] int32
    #: First tokens, of whole blocks, that lie in the same blocks for all.
    common: int = 0
    #: Whether those are read once for all.
    grouped: bool = False
    #: Whether blocks follow one another, instead of lying anywhere.
    contiguous: bool = False
    #: Whether tiles of many rows go through the kernels for Hopper, where there is one.
    hopper: bool = False

    @property
    def pages(self) -> np.ndarray:
        """Blocks of each."""
        return -(-self.lens // BLOCK_SIZE)

    @property
    def cached_tokens(self) -> int:
        """Those that must be read at the least: what is shared counts once."""
        return int(self.lens.sum()) - self.common * (len(self.lens) - 1)

    def tables(self) -> tuple[np.ndarray, int]:
        """Block tables [S, longest], zeros past a context, and how many blocks they use."""
        shared, pages = self.common // BLOCK_SIZE, self.pages
        count = shared + int((pages - shared).sum())
        blocks = np.arange(count) if self.contiguous else np.random.default_rng(0).permutation(count)
        tables = np.zeros((len(pages), int(pages.max())), dtype=np.int32)
        tables[:, :shared] = blocks[:shared]
        used = shared
        for row, own in enumerate((pages - shared).tolist()):
            tables[row, shared : shared + own] = blocks[used : used + own]
            used += own
        return tables, count


def decode_contexts(rows: Sequence[int], context: int, sizes: AttentionSizes) -> Iterator[Contexts]:
    """All that decode is measured over."""
    for count in rows:
        yield from _both(f"paged_decode, {context:,}", np.full(count, context))
    fractions = np.random.default_rng(0).uniform(size=sizes.spread)
    lens = sizes.shortest * (sizes.longest / sizes.shortest) ** fractions
    yield from _both(f"paged_decode, {sizes.shortest:,} to {sizes.longest:,}", lens)
    yield from _both(f"paged_decode, {sizes.alone:,}", np.full(1, sizes.alone))
    behind, lens = (
        f"paged_decode, {sizes.own:,} behind {sizes.common:,}",
        np.full(sizes.group, sizes.common + sizes.own),
    )
    shared = sizes.common // BLOCK_SIZE * BLOCK_SIZE
    yield Contexts(f"{behind}, read once", lens.astype(np.int32), shared, grouped=True)
    yield Contexts(f"{behind}, read once, for Hopper", lens.astype(np.int32), shared, grouped=True, hopper=True)
    yield Contexts(f"{behind}, read by each", lens.astype(np.int32), shared)
    yield Contexts(f"{behind}, nothing shared", lens.astype(np.int32))


def _both(name: str, lens: np.ndarray) -> Iterator[Contexts]:
    yield Contexts(name, lens.astype(np.int32))
    yield Contexts(f"{name}, blocks in order", lens.astype(np.int32), contiguous=True)


def decode_case(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, contexts: Contexts, turns_bytes: int
) -> Case:
    """Decode attention over these contexts, by a plan that was made before; torch over the same where all are alike."""
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    seqs, size = len(contexts.lens), contexts.cached_tokens * kv_heads * dim * 2 * dtype.itemsize
    turns = max(1, min(_MOST_TURNS, turns_bytes // size))
    cache, tables = paged_cache(config, device, dtype, contexts, turns)
    lens = torch.from_numpy(contexts.lens).to(device)
    q, scale = torch.randn(seqs, heads, dim, device=device, dtype=dtype), dim**-0.5
    plan = _plan(config, device, contexts)

    @through(hopper=contexts.hopper)
    def ours(i: int) -> torch.Tensor:
        return paged_decode(q, cache[:, i], tables, lens, scale, plan=plan)

    def wrong() -> str:
        result = ours(0)
        order = np.argsort(contexts.lens, kind="stable")
        for row in dict.fromkeys([0, seqs - 1, int(order[0]), int(order[-1])]):
            k, v = keys_and_values(cache[:, 0], tables[row], int(contexts.lens[row]))
            found = difference(result[row : row + 1], last_tokens, q[row : row + 1], k, v)
            if found:
                return f"sequence {row}: {found}"
        return ""

    torchs = None
    if not contexts.common and not contexts.contiguous and (contexts.lens == contexts.lens[0]).all():
        dense = torch.randn(turns, 2, seqs, kv_heads, int(contexts.lens[0]), dim, device=device, dtype=dtype)

        def torchs(i: int) -> torch.Tensor:
            return scaled_dot_product_attention(q[:, :, None], dense[i, 0], dense[i, 1], scale=scale, enable_gqa=True)

    return Case(contexts.name, seqs, float(size), "TB/s", ours, torchs, turns, wrong)


def through(*, hopper: bool) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Runs a function with the kernels for Hopper switched on, or off."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            before, _hopper_attention.enabled = _hopper_attention.enabled, hopper
            try:
                return function(*args, **kwargs)
            finally:
                _hopper_attention.enabled = before

        return run

    return decorate


def _plan(config: ModelConfig, device: torch.device, contexts: Contexts) -> DecodePlan:
    """As the engine's graphs hold it: padded to the number of programs that they launch."""
    seqs, processors = len(contexts.lens), _PROCESSORS
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    group = config.num_heads // config.num_kv_heads
    shape = PlanShape(seqs, config.num_kv_heads, group, processors, shared=contexts.grouped)
    runs = [SharedRun(np.arange(seqs), 0, contexts.common)] if contexts.grouped else []
    fields = plan_fields(shape)
    packed = PackedInputs(torch.zeros(packed_bytes(fields), dtype=torch.uint8, device=device), fields)
    packed.send(**plan_decode(contexts.lens, np.arange(seqs), shape, runs))
    return DecodePlan.of(shape, packed.tensors)


def paged_cache(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, contexts: Contexts, layers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cache of so many layers, and tables as wide as the model's longest context needs."""
    tables, count = contexts.tables()
    shape = (count, layers, 2, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    cache = torch.randn(shape, device=device, dtype=dtype)
    wide = np.zeros((len(tables), max(tables.shape[1], config.max_context // BLOCK_SIZE)), dtype=np.int32)
    wide[:, : tables.shape[1]] = tables
    return cache, torch.from_numpy(wide).to(device)


def keys_and_values(kv: torch.Tensor, table: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [tokens, Hkv, D] of one sequence."""
    pages = kv[table[: -(-tokens // BLOCK_SIZE)].long()]  # [P, 2, Hkv, block, D]
    k, v = pages.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :tokens]
    return k, v


def last_tokens(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of q [n, Hq, D], the last n of the tokens of k and v [tokens, Hkv, D]."""
    n, tokens, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * q.shape[2] ** -0.5  # [Hq, n, tokens]
    place = torch.arange(tokens, device=q.device)
    future = place > place[tokens - n :, None]
    return (scores.masked_fill(future, float("-inf")).softmax(-1) @ v).transpose(0, 1)
