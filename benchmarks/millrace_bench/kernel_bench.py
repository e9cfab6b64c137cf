"""Each kernel at the shapes of a model, beside torch and its libraries doing the same to the same data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec
import torch
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import rms_norm as torch_rms_norm
from torch.nn.functional import silu

from millrace_kernels import (
    linear,
    norm_gated_linear,
    norm_linear,
    rms_norm_residual,
    sample,
    silu_mul,
)
from millrace_kernels.sample import sample_reference
from millrace_worker.models.config import ModelConfig

from .attention_cases import AttentionSizes, decode_case, decode_contexts
from .kernel_case import CHECKED_ROWS, Case, Work, difference
from .prefill_cases import prefill_case, prefills

#: Weights and caches of at least this many bytes take turns, so that no cache of the device holds them.
_ROTATED_BYTES = 400_000_000
_EPS = 1e-5

Function = Callable[..., torch.Tensor]


class Figure(msgspec.Struct, frozen=True):
    """A launch's time, of many in one CUDA graph; or why it was not timed."""

    kernel: str
    #: Rows or sequences of the launch.
    rows: int
    microseconds: float
    #: What torch takes; None where it has nothing of the kind.
    torch_microseconds: float | None
    #: Achieved: TB/s of the bytes that must be read, or TFLOP/s.
    rate: float
    unit: str
    #: What a copy on the device takes to move the same bytes; None where operations count.
    floor_microseconds: float | None = None
    #: What is wrong with its result; "" when nothing is.
    failed: str = ""


def run(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rows: tuple[int, ...] = (1, 8, 32, 64, 128, 256),
    context: int = 1024,
    turns_bytes: int = _ROTATED_BYTES,
    sizes: AttentionSizes | None = None,
) -> list[Figure]:
    """Figures of every kernel that a step runs, at these numbers of rows; attention over `context` tokens each.

    Then decode attention at `sizes`. The first figure is that of a copy. A result is checked before it is timed.
    """
    with torch.inference_mode():
        copied = _copy_figure(device, dtype, turns_bytes)
        figures = [copied]
        # One after the other: each has gigabytes of its own.
        for case in _cases(config, device, dtype, rows, context, turns_bytes, sizes or AttentionSizes()):
            figures.append(_figure(case, device, copied.rate))
    return figures


def _figure(case: Case, device: torch.device, copy_rate: float) -> Figure:
    floor = case.amount / copy_rate / 1e6 if case.unit == "TB/s" else None
    wrong = case.wrong()
    if wrong:
        return Figure(case.kernel, case.rows, 0.0, None, 0.0, case.unit, floor, wrong)
    ours = _microseconds(case.ours, case.turns, device)
    torchs = None if case.torchs is None else _microseconds(case.torchs, case.turns, device)
    return Figure(case.kernel, case.rows, ours, torchs, case.amount / ours / 1e6, case.unit, floor)


def _copy_figure(device: torch.device, dtype: torch.dtype, size: int) -> Figure:
    """Of a copy of so many bytes, each of which is read and written, the quicker of two ways.

    In a CUDA graph the driver's own copy may be a third slower than a kernel that reads and writes as much.
    """
    source = torch.randn(size // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)
    copied = _microseconds(lambda _: target.copy_(source), 1, device)
    spent = min(copied, _microseconds(lambda _: torch.neg(source, out=target), 1, device))
    return Figure("copy", 1, spent, None, 2.0 * size / spent / 1e6, "TB/s", spent)


def _cases(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    rows: tuple[int, ...],
    context: int,
    turns_bytes: int,
    sizes: AttentionSizes,
) -> Iterator[Case]:
    for count in rows:
        yield from _linear_cases(config, device, dtype, count, turns_bytes)
        yield _norm_case(config, device, dtype, count)
        yield _silu_case(config, device, dtype, count)
        for filtered in (False, True):
            yield _sample_case(config, device, dtype, count, filtered=filtered)
    kinds = (False, True) if device.type == "cuda" else (False,)
    for contexts in decode_contexts(rows, context, sizes):
        if contexts.hopper in kinds:
            yield decode_case(config, device, dtype, contexts, turns_bytes)
    for prefill in prefills(config, device, dtype, context, sizes):
        yield prefill_case(config, device, dtype, prefill)


def _linear_cases(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, rows: int, turns_bytes: int
) -> Iterator[Case]:
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
            yield _linear_case(name, size, linear, torch_linear, weights, x)
        elif name.startswith("norm_linear"):
            yield _linear_case(name, size, _our_normed, _normed, weights, x, residual, norm)
        else:
            yield _linear_case(name, size, _our_gated, _gated, weights, x, residual, norm)


def _linear_case(
    name: str, size: int, ours: Function, torchs: Function, weights: torch.Tensor, *given: torch.Tensor
) -> Case:
    """Functions of `given`, the rows that come in first and the norm's weight last, and of one of the weights."""
    few = [tensor[:CHECKED_ROWS] if tensor.dim() > 1 else tensor for tensor in given]
    return Case(
        name,
        len(given[0]),
        float(size),
        "TB/s",
        lambda i: ours(*given, weights[i]),
        lambda i: torchs(*given, weights[i]),
        len(weights),
        lambda: difference(ours(*given, weights[0])[:CHECKED_ROWS], torchs, *few, weights[0]),
    )


def _our_normed(x: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return norm_linear(x, residual, norm, weight, None, _EPS)[0]


def _our_gated(x: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return norm_gated_linear(x, residual, norm, weight, None, _EPS)[0]


def _norm(x: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    return torch_rms_norm(x + residual, norm.shape, norm, _EPS)


def _normed(x: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch_linear(_norm(x, residual, norm), weight)


def _gated(x: torch.Tensor, residual: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return _silu(_normed(x, residual, norm, weight))


def _silu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


def _norm_case(config: ModelConfig, device: torch.device, dtype: torch.dtype, rows: int) -> Case:
    x, residual = (torch.randn(rows, config.hidden_size, device=device, dtype=dtype) for _ in range(2))
    norm = torch.ones(config.hidden_size, device=device, dtype=dtype)
    return Case(
        "rms_norm_residual",
        rows,
        4.0 * x.numel() * dtype.itemsize,
        "TB/s",
        lambda _: rms_norm_residual(x, residual, norm, _EPS),
        lambda _: _norm(x, residual, norm),
        1,
        lambda: difference(rms_norm_residual(x, residual, norm, _EPS)[0], _norm, x, residual, norm),
    )


def _silu_case(config: ModelConfig, device: torch.device, dtype: torch.dtype, rows: int) -> Case:
    gate_up = torch.randn(rows, 2 * config.intermediate_size, device=device, dtype=dtype)
    return Case(
        "silu_mul",
        rows,
        1.5 * gate_up.numel() * dtype.itemsize,
        "TB/s",
        lambda _: silu_mul(gate_up),
        lambda _: _silu(gate_up),
        1,
        lambda: difference(silu_mul(gate_up), _silu, gate_up),
    )


def _sample_case(config: ModelConfig, device: torch.device, dtype: torch.dtype, rows: int, *, filtered: bool) -> Case:
    """At temperature 1; filtered: top-k 20 and top-p 0.95."""
    logits = torch.randn(rows, config.vocab_size, device=device, dtype=dtype) * 3
    floats, ints = torch.ones(rows, device=device), torch.zeros(rows, dtype=torch.int64, device=device)
    settings = (
        floats,
        torch.full((rows,), 20 if filtered else 0, dtype=torch.int32, device=device),
        torch.full((rows,), 0.95 if filtered else 1.0, device=device),
        torch.zeros(rows, device=device),
        ints,
        ints,
    )

    def ours(_: int) -> torch.Tensor:
        return sample(logits, *settings, any_filter=filtered)

    def torchs(_: int) -> torch.Tensor:
        weights = logits.float().softmax(-1)
        return (weights / torch.empty_like(weights).exponential_()).argmax(-1)

    def wrong() -> str:
        n = CHECKED_ROWS
        few = [setting[:n] for setting in settings]
        expected, found = sample_reference(logits[:n], *few, any_filter=filtered).tolist(), ours(0)[:n].tolist()
        return "" if found == expected else f"it drew {found}, not {expected}"

    name = "sample, top-k and top-p" if filtered else "sample"
    size = float(logits.numel() * dtype.itemsize)
    return Case(name, rows, size, "TB/s", ours, None if filtered else torchs, 1, wrong)


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
