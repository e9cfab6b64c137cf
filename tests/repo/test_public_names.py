"""What a package exports: a sorted __all__ whose every name is there."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


def _in_isort_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff's RUF022 sorts."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


@pytest.fixture(params=["millrace", "millrace.testing", "millrace_kernels", "millrace_schemas"])
def package(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_all_is_sorted_and_without_repetition(package: ModuleType) -> None:
    names = list(package.__all__)
    assert names == sorted(set(names), key=_in_isort_order)


def test_every_exported_name_is_there(package: ModuleType) -> None:
    assert package.__all__
    assert not [name for name in package.__all__ if not hasattr(package, name)]


def test_nothing_private_is_exported(package: ModuleType) -> None:
    assert not [name for name in package.__all__ if name.startswith("_") and name != "__version__"]
