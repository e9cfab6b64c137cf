"""Programmatic dependent launch: a kernel starts while the one before it drains, and waits before it reads its results.

Each kernel that is launched so waits in every program. When it is done, the ones before it are done too.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def await_inputs(PDL: tl.constexpr):
    """From here on, what earlier kernels wrote is there, and the next one may start where this one leaves room.

    Before it, only what no kernel of the step writes may be read, and nothing may be written.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def prefetch(pointers, PDL: tl.constexpr):
    """Ask for the lines of L2 that the pointers lie in, where a launch may be waiting for another."""
    if PDL:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [pointers.to(tl.int64, bitcast=True)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


def dependent_launch(tensor: torch.Tensor) -> dict[str, Any]:
    """Arguments of a kernel with the constant PDL, launched on the tensor's device."""
    if tensor.is_cuda and _capability(tensor.device.index) >= (9, 0):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


def is_hopper(tensor: torch.Tensor) -> bool:
    """Whether the tensor's device is of the kind that block sizes were measured on."""
    return tensor.is_cuda and _capability(tensor.device.index)[0] == 9


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    """(0, 0) of a device that is not Nvidia's."""
    return (0, 0) if torch.version.hip else torch.cuda.get_device_capability(index)
