from __future__ import annotations

import numpy as np

from millrace_kernels import SharedRun
from millrace_worker.engine.shared_runs import find_shared_runs

BLOCK = 16
#: So many that 3,000 tokens are worth it.
TOKEN_BYTES = 16_000


def runs_of(contexts: list[tuple[list[int], int]], lines: list[int] | None = None) -> list[tuple[list[int], int, int]]:
    """Of (blocks, tokens of the context) of each sequence."""
    lines = list(range(len(contexts))) if lines is None else lines
    blocks = np.full((max(lines) + 1, max(len(table) for table, _ in contexts) + 1), 9, dtype=np.int32)
    for line, (table, _) in zip(lines, contexts, strict=True):
        blocks[line, : len(table)] = table
    lens = np.array([tokens for _, tokens in contexts], dtype=np.int32)
    found = find_shared_runs(blocks, np.array(lines, dtype=np.int32), lens, BLOCK, TOKEN_BYTES)
    return [readable(run) for run in found]


def readable(run: SharedRun) -> tuple[list[int], int, int]:
    return sorted(run.members.tolist()), run.begin, run.end


def own(sequence: int, count: int) -> list[int]:
    return [10_000 + 100 * sequence + i for i in range(count)]


def test_contexts_that_share_nothing_have_no_runs() -> None:
    assert runs_of([(own(i, 40), 600) for i in range(50)]) == []


def test_a_run_ends_where_the_first_table_differs() -> None:
    head = list(range(100, 140))
    contexts = [(head + own(i, 3), 40 * BLOCK + 5 + i) for i in range(10)]
    contexts[3] = (head[:30] + own(3, 13), 40 * BLOCK + 9)
    assert runs_of(contexts) == [(list(range(10)), 0, 30 * BLOCK)]


def test_lines_are_not_sequences() -> None:
    head = list(range(100, 140))
    contexts = [(head + own(i, 1), 40 * BLOCK + 1) for i in range(8)]
    assert runs_of(contexts, [9, 2, 30, 4, 0, 7, 8, 1]) == [(list(range(8)), 0, 40 * BLOCK)]


def test_a_block_that_holds_the_query_is_in_no_run() -> None:
    """Forked sequences share the block that the newest token lies in until one of them writes the next."""
    head = list(range(100, 140))
    assert runs_of([(head, 40 * BLOCK)] * 8) == [(list(range(8)), 0, 39 * BLOCK)]


def test_several_groups_and_nested_ones() -> None:
    first, second, inner = list(range(100, 140)), list(range(200, 220)), list(range(300, 340))
    contexts = [(first + own(i, 5), 43 * BLOCK) for i in range(8)]
    contexts += [(second + own(i, 5), 23 * BLOCK) for i in range(8, 30)]
    contexts += [(first + inner + own(i, 2), 81 * BLOCK) for i in range(30, 40)]
    contexts += [(own(99, 4), 50)]
    assert runs_of(contexts) == [
        (list(range(8, 30)), 0, 20 * BLOCK),
        (sorted([*range(8), *range(30, 40)]), 0, 40 * BLOCK),
        (list(range(30, 40)), 40 * BLOCK, 80 * BLOCK),
    ]


def test_runs_that_save_little_are_left_out_and_covered_by_those_within() -> None:
    """A chat template's first words are shared by all, a system prompt by some of them."""
    template, system = [100, 101], list(range(200, 240))
    contexts = [(template + own(i, 40), 42 * BLOCK) for i in range(20)]
    contexts += [(template + system + own(i, 2), 43 * BLOCK) for i in range(20, 30)]
    assert runs_of(contexts) == [(list(range(20, 30)), 0, 42 * BLOCK)]
    assert runs_of([([*range(100, 140), *own(i, 2)], 41 * BLOCK) for i in range(3)]) == []
    assert runs_of([([*range(100, 140), *own(i, 2)], 41 * BLOCK) for i in range(5)]) == []
    assert len(runs_of([([*range(100, 140), *own(i, 2)], 41 * BLOCK) for i in range(6)])) == 1


def test_contexts_that_part_at_ever_other_places_are_given_up_on() -> None:
    """Prompts cut from one document: each goes on with blocks of its own where it was cut."""
    document = list(range(100, 1200))
    contexts = [(document[: 20 + i] + own(i, 5), (25 + i) * BLOCK) for i in range(1000)]
    runs = runs_of(contexts)
    assert 0 < len(runs) <= 256
    assert runs[0] == (list(range(1000)), 0, 20 * BLOCK)


def test_many_pairs_are_not_looked_at() -> None:
    contexts = [([100 + i // 2, *own(i, 40)], 600) for i in range(400)]
    assert runs_of(contexts) == []
