"""From a model directory to a Decoder on its device."""

from __future__ import annotations

from pathlib import Path

import torch

from millrace_worker.errors import ModelError

from .checkpoint import Checkpoint
from .config import DTYPES, ModelConfig, load_config
from .decoder import Decoder
from .weights import Slot, shapes, slots

#: Standard deviation of dummy weights: that of a fresh Llama, so that activations stay of ordinary size.
DUMMY_STD = 0.02


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    load_format: str = "auto",
    seed: int = 0,
) -> tuple[Decoder, ModelConfig]:
    """The model in the directory `path`, its weights on `device`, and its configuration.

    `dtype` is torch's or its name; "auto" is the checkpoint's, but a float32 one runs in bfloat16 on a GPU, as in vLLM.
    `load_format` "dummy" needs config.json alone: weights are drawn on the device from `seed`. Takes the memory of the
    weights, of the rotary table and of one stored tensor. Raises ModelError before any weight is read when the
    directory is not a whole model that we run.
    """
    device = torch.device(device)
    config = load_config(path)
    wanted = slots(config)
    torch_dtype = _resolve_dtype(dtype, config, device)
    if load_format == "dummy":
        return Decoder(config, _dummy(wanted, torch_dtype, device, seed)), config
    if load_format != "auto":
        raise ModelError(f"load_format is {load_format!r}; it must be 'auto' or 'dummy'")
    checkpoint = Checkpoint(path)
    checkpoint.check(wanted, tied=config.tie_word_embeddings)
    weights = _allocate(wanted, torch_dtype, device)
    rows = {slot.source: weights[slot.target][slot.first_row : slot.first_row + slot.shape[0]] for slot in wanted}
    for name, tensor in checkpoint.read(set(rows)):
        rows[name].copy_(tensor)
    return Decoder(config, weights), config


def _resolve_dtype(dtype: torch.dtype | str, config: ModelConfig, device: torch.device) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        name = "bfloat16" if config.dtype == "float32" and device.type == "cuda" else config.dtype
    if name not in DTYPES:
        raise ModelError(f"weights cannot run in {name}; the dtype must be auto or one of {', '.join(DTYPES)}")
    resolved: torch.dtype = getattr(torch, name)
    return resolved


def _allocate(wanted: list[Slot], dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    sizes = shapes(wanted)
    try:
        return {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in sizes.items()}
    except torch.OutOfMemoryError as e:
        needed = sum(torch.Size(shape).numel() for shape in sizes.values()) * dtype.itemsize
        raise ModelError(f"the weights need {needed / 2**30:.1f} GiB, which {device} does not have free") from e


def _dummy(wanted: list[Slot], dtype: torch.dtype, device: torch.device, seed: int) -> dict[str, torch.Tensor]:
    """Weights drawn from a normal distribution, norms of one."""
    weights = _allocate(wanted, dtype, device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, tensor in weights.items():
        if name.endswith("norm"):
            tensor.fill_(1.0)
        else:
            tensor.normal_(0.0, DUMMY_STD, generator=generator)
    return weights
