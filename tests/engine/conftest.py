"""Engine tests run tiny tensors, for which a second thread costs more than it gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from disk_parts import PROMPTS, ask, disk_config
from greedy import save
from millrace_worker.engine.engine import Engine

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, for tests of caches."""
    return save("llama3-untied", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def cold(model: Path) -> list[list[int]]:
    """Answers to PROMPTS without any cache."""
    return ask(Engine(disk_config(model, None, enable_prefix_caching=False)), PROMPTS)
