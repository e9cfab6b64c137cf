"""What every op shares: where it runs, and checks that read no tensor data, so they cost no device synchronisation."""

from __future__ import annotations

import functools

import torch
import triton

#: Triton's own switch, TRITON_INTERPRET=1, as it stood when the kernels were decorated.
INTERPRETED: bool = triton.knobs.runtime.interpret

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def use_triton(tensor: torch.Tensor) -> bool:
    """Whether an op on this tensor runs its kernel: always on CUDA, on a CPU only under TRITON_INTERPRET=1."""
    device = tensor.device
    if device.type == "cpu":
        return INTERPRETED
    if device.type != "cuda":
        raise ValueError(f"tensors are on {device}; the kernels run on cuda and, through their references, on cpu")
    if device.index != torch.cuda.current_device():
        raise ValueError(f"tensors are on {device}, which is not current; call torch.cuda.set_device first")
    return True


def multiprocessors(tensor: torch.Tensor) -> int:
    """How many programs the tensor's device runs at once, at the least."""
    return _cuda_multiprocessors(tensor.device.index) if tensor.is_cuda else 1


@functools.cache
def _cuda_multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def check_float(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} is {tensor.dtype}; it must be float32, bfloat16 or float16")


def check_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} is {tensor.dtype}; it must be {dtype}")


def check_shape(name: str, tensor: torch.Tensor, *shape: int | None) -> None:
    """None stands for any size."""
    if tensor.dim() != len(shape) or any(n is not None and n != m for n, m in zip(shape, tensor.shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be [{wanted}]")


def check_rows(name: str, tensor: torch.Tensor) -> None:
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has stride {tensor.stride(-1)} in its last dimension; it must be contiguous there")


def check_contiguous(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous; its strides are {list(tensor.stride())}")


def check_same_device(**tensors: torch.Tensor) -> None:
    """All on the device of the first."""
    (first, model), *rest = tensors.items()
    for name, tensor in rest:
        if tensor.device != model.device:
            raise ValueError(f"{name} is on {tensor.device} and {first} on {model.device}; move one of them")


def check_kv(kv: torch.Tensor) -> None:
    """One layer of the cache: [num_blocks, 2, Hkv, block_size, D], any stride between blocks, contiguous inside."""
    check_float("kv", kv)
    check_shape("kv", kv, None, 2, None, None, None)
    _, _, heads, block_size, head_dim = kv.shape
    inner = (heads * block_size * head_dim, block_size * head_dim, head_dim, 1)
    if kv.stride()[1:] != inner:
        raise ValueError(f"kv has strides {list(kv.stride())}; those after the first must be {list(inner)}")


def check_queries(q: torch.Tensor, kv: torch.Tensor, tables: torch.Tensor, out: torch.Tensor | None) -> None:
    """What paged_decode and paged_prefill ask of q [.., Hq, D], the cache, the block tables [S, M] and the output."""
    check_kv(kv)
    _, _, kv_heads, _, head_dim = kv.shape
    check_shape("q", q, None, None, head_dim)
    check_dtype("q", q, kv.dtype)
    check_rows("q", q)
    if q.shape[1] % kv_heads:
        raise ValueError(f"q has {q.shape[1]} heads, which {kv_heads} KV heads do not divide")
    check_shape("block_tables", tables, None, None)
    check_dtype("block_tables", tables, torch.int32)
    check_rows("block_tables", tables)
    if out is not None:
        check_shape("out", out, *q.shape)
        check_dtype("out", out, q.dtype)
        check_contiguous("out", out)
