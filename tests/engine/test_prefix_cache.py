"""Names of blocks: fixed over processes, different for any difference in what came before."""

from __future__ import annotations

import random

import pytest

from fake_model import sequence
from millrace_worker.engine import prefix_cache
from millrace_worker.engine.prefix_cache import ROOT, ChainHasher, block_hash, root_of


def chain(tokens: list[int], block_size: int, salt: str = "") -> list[bytes]:
    """One block after the other."""
    names, parent = [], root_of(salt)
    for start in range(0, len(tokens) - block_size + 1, block_size):
        parent = block_hash(parent, tokens[start : start + block_size])
        names.append(parent)
    return names


def test_the_name_of_a_block_is_fixed() -> None:
    """A changed hash silently empties every cache that outlives the process."""
    assert block_hash(ROOT, [1, 2, 3, 4]).hex() == "5952725f92dfeeb16a77f6a9a8c6f90eb3ba1d5332df8b5f960a5114525c8e7c"
    assert root_of("") == ROOT
    assert root_of("acme:").hex() == "cc17ce1b285add14ba0dd1101cb403a916249c8fe61dd1de4fe83ab00485c363"


def test_the_chain_depends_on_everything_before() -> None:
    one, two = sequence(1, [1, 2, 3, 4, 5, 6]), sequence(2, [9, 2, 3, 4, 5, 6])
    hasher = ChainHasher(2)
    for seq in (one, two):
        hasher.extend(seq, 3)
    assert not set(one.block_hashes) & set(two.block_hashes)


def test_hashes_are_extended_not_recomputed() -> None:
    seq, hasher = sequence(1, [1, 2, 3, 4, 5, 6]), ChainHasher(2)
    hasher.extend(seq, 2)
    first = list(seq.block_hashes)
    hasher.extend(seq, 3)
    assert seq.block_hashes[:2] == first
    assert len(seq.block_hashes) == 3


@pytest.mark.parametrize("seed", range(10))
def test_names_are_those_of_the_chain_whatever_came_before(seed: int) -> None:
    """Prompts with common beginnings of any length, hashed at once or bit by bit, in a small memory."""
    draw = random.Random(seed)
    hasher = ChainHasher(4, remembered=3)
    heads = [[draw.randrange(9) for _ in range(40)] for _ in range(5)]
    for number in range(200):
        tokens = draw.choice(heads)[: draw.randrange(41)] + [draw.randrange(3) for _ in range(draw.randrange(30))]
        seq, wanted = sequence(number, tokens), chain(tokens, 4)
        for count in sorted({draw.randrange(len(wanted) + 1), len(wanted)}):
            hasher.extend(seq, count)
            assert seq.block_hashes == wanted[:count]


def test_a_salt_changes_every_name_and_none_is_taken_over() -> None:
    hasher, tokens = ChainHasher(4), list(range(40))
    found = []
    for number, salt in enumerate(("", "a:", "b:", "a:", "")):
        seq = sequence(number, tokens, salt=salt)
        hasher.extend(seq, 10)
        assert seq.block_hashes == chain(tokens, 4, salt)
        found.append(seq.block_hashes)
    assert found[3:] == [found[1], found[0]]
    assert len({name for names in found for name in names}) == 3 * 10


def test_no_salt_is_taken_for_tokens() -> None:
    """A block's tokens as text would be the beginning of whoever has that text for a salt."""
    tokens = [ord(c) for c in "pick"]
    assert root_of(b"".join(i.to_bytes(4, "little") for i in tokens).decode()) != block_hash(ROOT, tokens)


def test_a_common_beginning_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []
    plain = prefix_cache._hash
    monkeypatch.setattr(prefix_cache, "_hash", lambda parent, content: hashed.append(content) or plain(parent, content))
    hasher, system = ChainHasher(4), list(range(40))
    for user in range(50):
        hasher.extend(sequence(user, [*system, user, user, user, user]), 11)
    assert len(hashed) == 10 + 50
