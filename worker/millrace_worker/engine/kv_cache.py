"""The KV cache tensor: its layout, and how many blocks the device has room for."""

from __future__ import annotations

import torch

from millrace_worker.config import EngineConfig
from millrace_worker.errors import ModelError
from millrace_worker.models.config import ModelConfig

#: Of what `allocate` says about a block's bytes. To be raised with any change of it: blocks outlive the process.
KV_LAYOUT_VERSION = 1

#: Without a GPU the cache is for demos and tests.
CPU_CACHE_BYTES = 256 * 1024 * 1024


def block_bytes(model: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values."""
    return model.num_layers * 2 * model.num_kv_heads * block_size * model.head_dim * dtype.itemsize


def allocate(
    num_blocks: int, model: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """`[num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]`, uninitialised.

    A block is contiguous over all layers, so that moving one is a single copy. Raises ModelError when the device does
    not have the memory.
    """
    shape = (num_blocks, model.num_layers, 2, model.num_kv_heads, block_size, model.head_dim)
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as e:  # OutOfMemoryError on a GPU, and no class of its own on a CPU
        size = num_blocks * block_bytes(model, block_size, dtype)
        raise ModelError(
            f"the KV cache needs {size / 2**30:.1f} GiB, which {device} does not have free; lower "
            "kv_cache_memory_bytes or gpu_memory_utilization"
        ) from e


def cache_budget(config: EngineConfig, device: torch.device, peak_bytes: int) -> int:
    """Bytes for the cache: what gpu_memory_utilization grants, less everything that a step at the token budget took.

    Raises ModelError when nothing is left.
    """
    if config.kv_cache_memory_bytes is not None:
        return config.kv_cache_memory_bytes
    if device.type == "cpu":
        return CPU_CACHE_BYTES
    free, total = torch.cuda.mem_get_info(device)
    # What the CUDA context, libraries and other processes hold; torch's own reserve is counted by `peak_bytes`.
    outside = total - free - torch.cuda.memory_reserved(device)
    budget = int(total * config.gpu_memory_utilization) - outside - peak_bytes
    if budget <= 0:
        raise ModelError(
            f"no memory is left for the KV cache: weights and a step take {peak_bytes / 2**30:.1f} GiB, others on the "
            f"device {outside / 2**30:.1f} GiB, and gpu_memory_utilization={config.gpu_memory_utilization} grants "
            f"{total * config.gpu_memory_utilization / 2**30:.1f} GiB; raise it, or lower max_num_batched_tokens"
        )
    return budget


def settle_sizes(config: EngineConfig, model: ModelConfig, budget: int, bytes_per_block: int) -> tuple[int, int]:
    """(num_blocks, max_model_len) for a cache of `budget` bytes.

    A sequence of max_model_len tokens always fits on its own, so no accepted job can be too large for the cache.
    Raises ModelError when the asked-for max_model_len does not fit, or is more than the model knows.
    """
    limit = model.max_context
    num_blocks = budget // bytes_per_block
    capacity = num_blocks * config.block_size
    wanted = config.max_model_len
    if wanted is not None and wanted > limit:
        raise ModelError(f"max_model_len={wanted} is more than the {limit} positions that the model was made for")
    if capacity < (wanted or 2):
        needed = "the 2 that any job needs" if wanted is None else f"max_model_len={wanted}"
        raise ModelError(
            f"the KV cache has {budget / 2**20:.1f} MiB, room for {capacity} tokens, less than {needed}; "
            "raise gpu_memory_utilization or kv_cache_memory_bytes, or lower max_model_len"
        )
    return num_blocks, wanted or min(limit, capacity)
