"""Attention over a paged cache, as cases of the kernel benchmark: decode as an engine plans it, and prefill."""

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
    paged_prefill,
    plan_decode,
)
from millrace_kernels._hopper_prefill import takes_prefill
from millrace_worker.engine.graphs import plan_fields
from millrace_worker.engine.packed import PackedInputs, packed_bytes
from millrace_worker.models.config import ModelConfig

from .kernel_case import CHECKED_ROWS, Case, difference

P = ParamSpec("P")
T = TypeVar("T")

BLOCK_SIZE = 16
_MOST_TURNS = 32
#: Where no device says how many it has.
_PROCESSORS = 132


@dataclass(frozen=True, slots=True)
class DecodeSizes:
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


def decode_contexts(rows: Sequence[int], context: int, sizes: DecodeSizes) -> Iterator[Contexts]:
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
    cache, tables = _paged(config, device, dtype, contexts, turns)
    lens = torch.from_numpy(contexts.lens).to(device)
    q, scale = torch.randn(seqs, heads, dim, device=device, dtype=dtype), dim**-0.5
    plan = _plan(config, device, contexts)

    @_through(hopper=contexts.hopper)
    def ours(i: int) -> torch.Tensor:
        return paged_decode(q, cache[:, i], tables, lens, scale, plan=plan)

    def wrong() -> str:
        result = ours(0)
        order = np.argsort(contexts.lens, kind="stable")
        for row in dict.fromkeys([0, seqs - 1, int(order[0]), int(order[-1])]):
            k, v = _dense(cache[:, 0], tables[row], int(contexts.lens[row]))
            found = difference(result[row : row + 1], _last_tokens, q[row : row + 1], k, v)
            if found:
                return f"sequence {row}: {found}"
        return ""

    torchs = None
    if not contexts.common and not contexts.contiguous and (contexts.lens == contexts.lens[0]).all():
        dense = torch.randn(turns, 2, seqs, kv_heads, int(contexts.lens[0]), dim, device=device, dtype=dtype)

        def torchs(i: int) -> torch.Tensor:
            return scaled_dot_product_attention(q[:, :, None], dense[i, 0], dense[i, 1], scale=scale, enable_gqa=True)

    return Case(contexts.name, seqs, float(size), "TB/s", ours, torchs, turns, wrong)


def prefill_kinds(config: ModelConfig, device: torch.device, dtype: torch.dtype, tokens: int) -> tuple[bool, ...]:
    """What `hopper` of `prefill_case` may be, for prompts of so many tokens: True where there is a kernel for them."""
    q = torch.empty(1, config.num_heads, config.head_dim, device=device, dtype=dtype)
    kv = torch.empty(1, 2, config.num_kv_heads, BLOCK_SIZE, config.head_dim, device=device, dtype=dtype)
    taken = takes_prefill(q, kv, tokens)
    return (False, True) if taken else (False,)


def prefill_case(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, prompts: int, tokens: int, *, hopper: bool
) -> Case:
    """Attention of so many whole prompts of so many tokens."""
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    name = f"paged_prefill, {prompts} x {tokens:,}" + (", for Hopper" if hopper else "")
    contexts = Contexts(name, np.full(prompts, tokens, dtype=np.int32))
    cache, tables = _paged(config, device, dtype, contexts, 1)
    lens = torch.from_numpy(contexts.lens).to(device)
    q, scale = torch.randn(prompts * tokens, heads, dim, device=device, dtype=dtype), dim**-0.5
    bounds = torch.arange(0, prompts * tokens + 1, tokens, dtype=torch.int32, device=device)
    k, v = torch.randn(2, prompts, kv_heads, tokens, dim, device=device, dtype=dtype)
    dense = q.view(prompts, tokens, heads, dim).transpose(1, 2)

    def torchs(_: int) -> torch.Tensor:
        return scaled_dot_product_attention(dense, k, v, is_causal=True, scale=scale, enable_gqa=True)

    @_through(hopper=hopper)
    def ours(_: int) -> torch.Tensor:
        return paged_prefill(q, cache[:, 0], tables, bounds, lens, tokens, scale)

    def wrong() -> str:
        result = ours(0)
        for prompt in (0, prompts - 1):
            keys, values = _dense(cache[:, 0], tables[prompt], tokens)
            last = slice((prompt + 1) * tokens - min(tokens, CHECKED_ROWS), (prompt + 1) * tokens)
            found = difference(result[last], _last_tokens, q[last], keys, values)
            if found:
                return f"prompt {prompt}: {found}"
        return ""

    return Case(name, prompts * tokens, 2.0 * heads * dim * prompts * tokens**2, "TFLOP/s", ours, torchs, 1, wrong)


def _through(*, hopper: bool) -> Callable[[Callable[P, T]], Callable[P, T]]:
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


def _paged(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, contexts: Contexts, layers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cache of so many layers, and tables as wide as the model's longest context needs."""
    tables, count = contexts.tables()
    shape = (count, layers, 2, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    cache = torch.randn(shape, device=device, dtype=dtype)
    wide = np.zeros((len(tables), max(tables.shape[1], config.max_context // BLOCK_SIZE)), dtype=np.int32)
    wide[:, : tables.shape[1]] = tables
    return cache, torch.from_numpy(wide).to(device)


def _dense(kv: torch.Tensor, table: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [tokens, Hkv, D] of one sequence."""
    pages = kv[table[: -(-tokens // BLOCK_SIZE)].long()]  # [P, 2, Hkv, block, D]
    k, v = pages.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :tokens]
    return k, v


def _last_tokens(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of q [n, Hq, D], the last n of the tokens of k and v [tokens, Hkv, D]."""
    n, tokens, group = q.shape[0], k.shape[0], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * q.shape[2] ** -0.5  # [Hq, n, tokens]
    place = torch.arange(tokens, device=q.device)
    future = place > place[tokens - n :, None]
    return (scores.masked_fill(future, float("-inf")).softmax(-1) @ v).transpose(0, 1)
