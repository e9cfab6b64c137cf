"""Which running sequences share blocks at the head of their contexts, so that attention reads those once for all."""

from __future__ import annotations

from collections import deque

import numpy as np

from millrace_kernels import SharedRun

#: Fewest sequences and fewest tokens of a run.
_LEAST_MEMBERS, _LEAST_TOKENS = 4, 256
#: Bytes of a layer that all runs of a step together save from being read. With less, the launch that reads the runs
#: takes longer than what it saves, as measured on an H200 for 4 to 128 sequences.
_LEAST_SAVED_BYTES = 48_000_000
#: Groups that are looked at where contexts part; there may be as many as sequences.
_MOST_GROUPS = 32
#: Groups that are looked at in all, so that contexts which part at ever other places do not hold up the step.
_MOST_LOOKS = 256
#: Blocks that are compared at once.
_STRIDE = 256


def find_shared_runs(
    blocks: np.ndarray, lines: np.ndarray, context_lens: np.ndarray, block_size: int, token_bytes: int
) -> list[SharedRun]:
    """Runs of whole blocks, outer ones before those nested in them; none where they would not pay.

    `blocks` [L, M] are the block tables; sequence i of the step has line `lines[i]` and context_lens[i] tokens, of
    which the last is its query's own and lies in no run. A token takes `token_bytes` of a layer of the cache.
    """
    full = (context_lens.astype(np.int64) - 1) // block_size
    runs: list[SharedRun] = []
    saved = looks = 0
    # (sequences, blocks that they all share, blocks of them that runs cover)
    open_groups: deque[tuple[np.ndarray, int, int]] = deque([(np.arange(len(lines)), 0, 0)])
    while open_groups and looks < _MOST_LOOKS:
        members, depth, covered = open_groups.popleft()
        for group in _alike(members[full[members] > depth], blocks, lines, depth):
            looks += 1
            end = _common(blocks, lines[group], depth, int(full[group].min()))
            tokens = (end - covered) * block_size
            worth = tokens >= _LEAST_TOKENS
            if worth:
                runs.append(SharedRun(group, covered * block_size, end * block_size))
                saved += tokens * (len(group) - 1)
            open_groups.append((group, end, end if worth else covered))
    return runs if saved * token_bytes >= _LEAST_SAVED_BYTES else []


def _alike(members: np.ndarray, blocks: np.ndarray, lines: np.ndarray, depth: int) -> list[np.ndarray]:
    """The largest groups of members that have the same block at `depth`."""
    if len(members) < _LEAST_MEMBERS:
        return []
    at = blocks[lines[members], depth]
    order = np.argsort(at, kind="stable")
    bounds = np.flatnonzero(np.diff(at[order])) + 1
    if len(bounds) + 1 > len(members) - _LEAST_MEMBERS + 1:
        return []
    starts, ends = np.concatenate(([0], bounds)), np.concatenate((bounds, [len(members)]))
    sizes = ends - starts
    largest = np.argsort(-sizes, kind="stable")[:_MOST_GROUPS]
    return [members[order[starts[i] : ends[i]]] for i in largest if sizes[i] >= _LEAST_MEMBERS]


def _common(blocks: np.ndarray, lines: np.ndarray, begin: int, limit: int) -> int:
    """Up to where the tables of these lines are equal, which they are up to `begin`; at most `limit`."""
    while begin < limit:
        end = min(begin + _STRIDE, limit)
        part = blocks[lines, begin:end]
        differs = np.flatnonzero((part != part[0]).any(axis=0))
        if len(differs):
            return begin + int(differs[0])
        begin = end
    return limit
