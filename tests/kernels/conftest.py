"""The same tests run three ways: kernels on CUDA where there is a device, kernels through Triton's interpreter in a
process started with TRITON_INTERPRET=1, else the references. Memory that an op allocates starts as NaN."""

from __future__ import annotations

from types import FunctionType

import pytest
import torch

from kernel_cases import CUDA, INTERPRETED
from millrace_kernels import _hopper_attention

_EMPTY, _EMPTY_LIKE, _NEW_EMPTY = torch.empty, torch.empty_like, torch.Tensor.new_empty


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-1)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that an op forgets to write is NaN in its result, or the id -1."""
    torch.manual_seed(20)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: _poison(_EMPTY(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: _poison(_EMPTY_LIKE(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: _poison(_NEW_EMPTY(*a, **k)))


@pytest.fixture(params=["portable", "for Hopper"] if CUDA else ["portable"])
def either_attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with each of the kernels that there are for tiles of many rows."""
    monkeypatch.setattr(_hopper_attention, "enabled", request.param == "for Hopper")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not CUDA:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


if INTERPRETED:
    from triton.runtime import interpreter

    _patch_tensor = interpreter._patch_lang_tensor

    def _patch_index(tensor: type, scope: interpreter._LangPatchScope) -> None:
        """Triton 3.6 makes a range bound of an array by int(), which NumPy 2.4 refuses unless it has no dimension."""
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = _patch_index

    _patch_lang, _restore = interpreter._patch_lang, interpreter._LangPatchScope.restore
    _patched: set[str] = set()

    def _patch_once(fn: FunctionType) -> interpreter._LangPatchScope:
        """Triton patches its language whenever a kernel calls a function; once a launch and module will do."""
        if fn.__module__ in _patched:
            return interpreter._LangPatchScope()
        _patched.add(fn.__module__)
        return _patch_lang(fn)

    def _restore_all(scope: interpreter._LangPatchScope) -> None:
        _restore(scope)
        _patched.clear()

    interpreter._patch_lang, interpreter._LangPatchScope.restore = _patch_once, _restore_all
