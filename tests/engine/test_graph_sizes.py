"""Which sizes of steps are captured."""

from __future__ import annotations

from millrace_worker.engine.graphs import graph_sizes
from millrace_worker.engine.mixed_graphs import mixed_sizes


def test_graph_sizes_end_with_the_largest_batch() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(6) == [1, 2, 4, 6]
    assert graph_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    sizes = graph_sizes(1024)
    assert sizes[-1] == 1024
    assert len(sizes) < 50


def test_mixed_sizes_end_with_the_token_budget() -> None:
    assert mixed_sizes(16) == [16]
    assert mixed_sizes(96) == [32, 64, 96]
    assert mixed_sizes(100) == [32, 64, 96, 100]
    sizes = mixed_sizes(8192)
    assert sizes[-1] == 2048
    assert sizes == sorted(set(sizes))
