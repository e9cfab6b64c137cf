"""Tiny saved models, as transformers writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tiny_models import CONFIGS, make_model


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=sorted(CONFIGS))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """A directory with a saved model, and the model."""
    model = make_model(request.param)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return path, model


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A saved model in one file that a test may break."""
    make_model("llama3-untied").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A saved model in several files that a test may break."""
    make_model("llama3-untied").save_pretrained(tmp_path, max_shard_size="60KB")
    return tmp_path
