"""Each kernel at the shapes of a model, beside torch and its libraries doing the same to the same data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec
import torch
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import rms_norm as torch_rms_norm
from torch.nn.functional import scaled_dot_product_attention, silu

from millrace_kernels import (
    linear,
    norm_gated_linear,
    norm_linear,
    paged_decode,
    paged_prefill,
    rms_norm_residual,
    sample,
    silu_mul,
)
from millrace_worker.models.config import ModelConfig

BLOCK_SIZE = 16
#: Weights and caches of at least this many bytes take turns, so that no cache of the device holds them.
_ROTATED_BYTES = 400_000_000
_EPS = 1e-5

Work = Callable[[int], object]


class Figure(msgspec.Struct, frozen=True):
    """A launch's time, of many in one CUDA graph."""

    kernel: str
    #: Rows or sequences of the launch.
    rows: int
    microseconds: float
    #: What torch takes; None where it has nothing of the kind.
    torch_microseconds: float | None
    #: Achieved: TB/s of the bytes that must be read, or TFLOP/s.
    rate: float
    unit: str


class _Case(msgspec.Struct, frozen=True):
    kernel: str
    rows: int
    #: Bytes or operations of one launch.
    amount: float
    unit: str
    #: Given a number, so that launches take turns among copies of the large operand.
    ours: Work
    torchs: Work | None
    turns: int


def run(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rows: tuple[int, ...] = (1, 8, 32, 64, 128, 256),
    context: int = 1024,
    turns_bytes: int = _ROTATED_BYTES,
) -> list[Figure]:
    """Figures of every kernel that a step runs, at these numbers of rows; attention over `context` tokens each."""
    figures = []
    with torch.inference_mode():
        for case in _cases(config, device, dtype, rows, context, turns_bytes):
            ours = _microseconds(case.ours, case.turns, device)
            torchs = None if case.torchs is None else _microseconds(case.torchs, case.turns, device)
            figures.append(Figure(case.kernel, case.rows, ours, torchs, case.amount / ours / 1e6, case.unit))
    return figures


def _cases(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    rows: tuple[int, ...],
    context: int,
    turns_bytes: int,
) -> Iterator[_Case]:
    for count in rows:
        yield from _linear_cases(config, device, dtype, count, turns_bytes)
        yield _decode_case(config, device, dtype, count, context, turns_bytes)
        yield _norm_case(config, device, dtype, count)
        yield _silu_case(config, device, dtype, count)
        yield _sample_case(config, device, dtype, count)
    yield _prefill_case(config, device, dtype, context)


def _linear_cases(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, rows: int, turns_bytes: int
) -> Iterator[_Case]:
    hidden, inner, q = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
    shapes = {
        "norm_linear qkv": (q + 2 * config.num_kv_heads * config.head_dim, hidden),
        "linear o": (hidden, q),
        "norm_gated_linear gate_up": (2 * inner, hidden),
        "linear down": (hidden, inner),
        "norm_linear lm_head": (config.vocab_size, hidden),
    }
    for name, (columns, k) in shapes.items():
        size = columns * k * dtype.itemsize
        turns = max(1, turns_bytes // size)
        weights = torch.randn(turns, columns, k, device=device, dtype=dtype) * k**-0.5
        x, residual = (torch.randn(rows, k, device=device, dtype=dtype) for _ in range(2))
        norm = torch.ones(k, device=device, dtype=dtype)
        if name.startswith("linear"):
            ours, torchs = _plain_work(x, weights)
        elif name.startswith("norm_linear"):
            ours, torchs = _normed_work(x, residual, norm, weights)
        else:
            ours, torchs = _gated_work(x, residual, norm, weights)
        yield _Case(name, rows, float(size), "TB/s", ours, torchs, turns)


def _plain_work(x: torch.Tensor, weights: torch.Tensor) -> tuple[Work, Work]:
    return lambda i: linear(x, weights[i]), lambda i: torch_linear(x, weights[i])


def _normed_work(
    x: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor, weights: torch.Tensor
) -> tuple[Work, Work]:
    return (
        lambda i: norm_linear(x, residual, norm, weights[i], None, _EPS),
        lambda i: torch_linear(torch_rms_norm(x + residual, norm.shape, norm, _EPS), weights[i]),
    )


def _gated_work(
    x: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor, weights: torch.Tensor
) -> tuple[Work, Work]:
    def torchs(i: int) -> torch.Tensor:
        gate, up = torch_linear(torch_rms_norm(x + residual, norm.shape, norm, _EPS), weights[i]).chunk(2, dim=-1)
        return silu(gate) * up

    return lambda i: norm_gated_linear(x, residual, norm, weights[i], None, _EPS), torchs


def _decode_case(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, seqs: int, context: int, turns_bytes: int
) -> _Case:
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    size = seqs * context * kv_heads * dim * 2 * dtype.itemsize
    turns = max(1, min(32, turns_bytes // size))
    cache, tables, lens = _paged(config, device, dtype, seqs, context, turns)
    q, scale = torch.randn(seqs, heads, dim, device=device, dtype=dtype), dim**-0.5
    dense = torch.randn(turns, 2, seqs, kv_heads, context, dim, device=device, dtype=dtype)

    def torchs(i: int) -> torch.Tensor:
        return scaled_dot_product_attention(q[:, :, None], dense[i, 0], dense[i, 1], scale=scale, enable_gqa=True)

    def ours(i: int) -> torch.Tensor:
        return paged_decode(q, cache[:, i], tables, lens, scale)

    return _Case("paged_decode", seqs, float(size), "TB/s", ours, torchs, turns)


def _prefill_case(config: ModelConfig, device: torch.device, dtype: torch.dtype, tokens: int) -> _Case:
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    cache, tables, lens = _paged(config, device, dtype, 1, tokens, 1)
    q, scale = torch.randn(tokens, heads, dim, device=device, dtype=dtype), dim**-0.5
    bounds = torch.tensor([0, tokens], dtype=torch.int32, device=device)
    k, v = torch.randn(2, 1, kv_heads, tokens, dim, device=device, dtype=dtype)
    dense = q.transpose(0, 1)[None]

    def torchs(_: int) -> torch.Tensor:
        return scaled_dot_product_attention(dense, k, v, is_causal=True, scale=scale, enable_gqa=True)

    def ours(_: int) -> torch.Tensor:
        return paged_prefill(q, cache[:, 0], tables, bounds, lens, tokens, scale)

    return _Case("paged_prefill", tokens, 2.0 * heads * dim * tokens**2, "TFLOP/s", ours, torchs, 1)


def _paged(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, seqs: int, context: int, layers: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pages = -(-context // BLOCK_SIZE)
    shape = (seqs * pages, layers, 2, config.num_kv_heads, BLOCK_SIZE, config.head_dim)
    cache = torch.randn(shape, device=device, dtype=dtype)
    tables = torch.randperm(seqs * pages, device=device).view(seqs, pages).int()
    # As wide as a longest context needs: the split of a context goes by it.
    wide = torch.zeros(seqs, max(pages, config.max_context // BLOCK_SIZE), dtype=torch.int32, device=device)
    wide[:, :pages] = tables
    return cache, wide, torch.full((seqs,), context, dtype=torch.int32, device=device)


def _norm_case(config: ModelConfig, device: torch.device, dtype: torch.dtype, rows: int) -> _Case:
    x, residual = (torch.randn(rows, config.hidden_size, device=device, dtype=dtype) for _ in range(2))
    norm = torch.ones(config.hidden_size, device=device, dtype=dtype)
    return _Case(
        "rms_norm_residual",
        rows,
        4.0 * x.numel() * dtype.itemsize,
        "TB/s",
        lambda _: rms_norm_residual(x, residual, norm, _EPS),
        lambda _: torch_rms_norm(x + residual, norm.shape, norm, _EPS),
        1,
    )


def _silu_case(config: ModelConfig, device: torch.device, dtype: torch.dtype, rows: int) -> _Case:
    gate_up = torch.randn(rows, 2 * config.intermediate_size, device=device, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    amount = 1.5 * gate_up.numel() * dtype.itemsize
    return _Case("silu_mul", rows, amount, "TB/s", lambda _: silu_mul(gate_up), lambda _: silu(gate) * up, 1)


def _sample_case(config: ModelConfig, device: torch.device, dtype: torch.dtype, rows: int) -> _Case:
    logits = torch.randn(rows, config.vocab_size, device=device, dtype=dtype)
    floats, ints = torch.ones(rows, device=device), torch.zeros(rows, dtype=torch.int64, device=device)

    def ours(_: int) -> torch.Tensor:
        return sample(logits, floats, ints.int(), floats, floats, ints, ints, any_filter=False)

    def torchs(_: int) -> torch.Tensor:
        weights = logits.float().softmax(-1)
        return (weights / torch.empty_like(weights).exponential_()).argmax(-1)

    return _Case("sample", rows, 2.0 * logits.numel() * dtype.itemsize, "TB/s", ours, torchs, 1)


def _microseconds(work: Work, turns: int, device: torch.device) -> float:
    """Of one launch: the least of five rounds over all turns, at least eight launches each."""
    launches = max(turns, 8)

    def once() -> None:
        for i in range(launches):
            work(i % turns)

    work(0)
    if device.type == "cuda":
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            once()
        graph.replay()
        return min(_device_ms(graph.replay) for _ in range(5)) * 1e3 / launches
    return min(_host_ms(once) for _ in range(5)) * 1e3 / launches


def _device_ms(work: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    elapsed: float = begin.elapsed_time(end)
    return elapsed


def _host_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3
