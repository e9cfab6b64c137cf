"""Pieces of text against one decoding of everything, for random ids of every kind of vocabulary."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from millrace_worker.detokenizer import Vocabulary
from millrace_worker.tokenizer import Tokenizer
from tiny_tokenizers import CORPUS, KINDS, save_tokenizer


@pytest.fixture(scope="module", params=sorted(KINDS))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    save_tokenizer(request.param, directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    loaded = Tokenizer.load(path)
    assert loaded is not None
    return loaded


def in_pieces(tokenizer: Tokenizer, ids: list[int], rng: random.Random, most: int) -> tuple[list[str], str]:
    """What a stream releases for ids pushed a few at a time, and what its end does."""
    stream, pieces, at = tokenizer.stream(), [], 0
    while at < len(ids):
        count = rng.randint(1, most)
        pieces.append(stream.push(ids[at : at + count]))
        at += count
    return pieces, stream.finish()


@pytest.mark.parametrize("most", [1, 5])
def test_random_ids_give_the_text_of_transformers(path: Path, tokenizer: Tokenizer, most: int) -> None:
    theirs = AutoTokenizer.from_pretrained(path)
    size = len(theirs)
    rng = random.Random(most)
    for _ in range(400):
        # Ids past the vocabulary too: models pad their embeddings, and random weights choose such rows.
        ids = [rng.randrange(size + 3) for _ in range(rng.randint(0, 40))]
        if rng.random() < 0.5:  # long runs of a few tokens find other faults than even mixtures
            few = [rng.randrange(size) for _ in range(3)]
            ids = [rng.choice(few) for _ in ids]
        want = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        pieces, last = in_pieces(tokenizer, ids, rng, most)
        assert "".join(pieces) + last == want, ids
        assert tokenizer.decode(ids) == want


def test_text_comes_back_and_no_character_is_split(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for text in CORPUS:
        ids = tokenizer.encode(text)
        pieces, last = in_pieces(tokenizer, ids, rng, 1)
        assert "".join(pieces) + last == tokenizer.decode(ids)
        assert "\ufffd" not in "".join(pieces)


def test_text_is_released_as_soon_as_it_is_certain(path: Path, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the quick dog")
    pieces, last = in_pieces(tokenizer, ids, random.Random(0), 1)
    assert last == ""
    visible = [i for i in ids if tokenizer.decode([i])]
    assert sum(map(bool, pieces)) >= len(visible) - 1


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback", "stripped-byte-level"])
def test_an_unfinished_character_waits_for_its_end(kind: str) -> None:
    backend = KINDS[kind]()
    vocabulary = Vocabulary(backend)
    if kind == "byte-fallback":
        ids = [backend.token_to_id(f"<0x{b:02X}>") for b in "🙂".encode()]
    else:
        ids = [backend.token_to_id(c) for c in "ðŁĻĤ"]  # the same four bytes in the byte-level alphabet
    assert None not in ids
    word = backend.token_to_id("s")

    whole = vocabulary.stream()
    assert [whole.push([i]) for i in ids[:3]] == ["", "", ""]
    assert whole.push([ids[3]]) + whole.push([word]) == "🙂s"

    cut = vocabulary.stream()
    assert cut.push(ids[:3]) == ""
    assert set(cut.finish()) == {"\ufffd"}

    broken = vocabulary.stream()
    assert broken.push([*ids[:2], word]) == vocabulary.decode([*ids[:2], word])


def test_special_tokens_do_not_eat_the_space_after_them(path: Path, tokenizer: Tokenizer) -> None:
    special = AutoTokenizer.from_pretrained(path).convert_tokens_to_ids("<|user|>")
    ids = [i for word in tokenizer.encode("the dog then the fox") for i in (special, word, special)]
    pieces, last = in_pieces(tokenizer, ids, random.Random(0), 1)
    assert "".join(pieces) + last == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_work_does_not_grow_with_the_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = KINDS[kind]()
    rng = random.Random(1)
    ids = [rng.randrange(backend.get_vocab_size()) for _ in range(3000)]
    vocabulary = Vocabulary(backend)
    decoded = 0
    plain = Vocabulary.decode

    def counting(self: Vocabulary, ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return plain(self, ids)

    monkeypatch.setattr(Vocabulary, "decode", counting)
    for run in (ids, [ids[0]] * 3000, [backend.token_to_id("<|user|>")] * 3000):
        decoded = 0
        stream = vocabulary.stream()
        for token_id in run:
            stream.push([token_id])
        stream.finish()
        assert decoded < 10 * len(run)


def test_each_tokens_bytes_together_are_the_text(path: Path, tokenizer: Tokenizer) -> None:
    """But for a space before a word where the decoder drops the very first one."""
    special = AutoTokenizer.from_pretrained(path).all_special_ids
    for text in CORPUS:
        ids = [token_id for token_id in tokenizer.encode(text) if token_id not in special]
        whole = b"".join(tokenizer.token_bytes(token_id) or b"?" for token_id in ids).decode(errors="replace")
        assert whole.removeprefix(" ") == tokenizer.decode(ids).removeprefix(" ")


def test_special_tokens_have_their_own_form_and_others_none(tokenizer: Tokenizer) -> None:
    for token_id in tokenizer.eos_token_ids:
        assert tokenizer.decode([token_id]) == ""
        assert tokenizer.token_bytes(token_id)
    assert tokenizer.token_bytes(10**6) is None
