"""The tokenizer against transformers', and the front's promise of no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from millrace_schemas import ErrorCode, InvalidRequest, Message, Role
from millrace_worker.errors import ModelError
from millrace_worker.tokenizer import Tokenizer
from tiny_tokenizers import CORPUS, KINDS, save_tokenizer

CHAT = (
    Message(Role.SYSTEM, "You are brief."),
    Message(Role.USER, "The  fox?\n🙂"),
    Message(Role.ASSISTANT, " jumps"),
    Message(Role.USER, "<|end|> and then"),
)


def load(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(path)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_encode_and_chat_equal_transformers(tmp_path: Path, kind: str) -> None:
    save_tokenizer(kind, tmp_path)
    ours, theirs = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CORPUS, "", " ", "<|user|>special", "\x00\u200b🏳️‍🌈", "a" * 300]:
        assert ours.encode(text) == theirs(text)["input_ids"]
    turns = [{"role": str(m.role), "content": m.content} for m in CHAT]
    want = theirs.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert ours.encode_chat(CHAT) == want
    assert theirs.convert_ids_to_tokens(want)[-1] == "<|assistant|>"
    assert ours.has_chat_template


def test_special_tokens_are_added_to_prompts_and_not_to_chats(tmp_path: Path) -> None:
    save_tokenizer("byte-level", tmp_path)
    tokenizer = load(tmp_path)
    assert tokenizer.encode("the")[0] == 1
    assert tokenizer.encode_chat(CHAT)[:2].count(1) == 1  # the template's own, and no second one
    assert tokenizer.decode(tokenizer.encode("the dog")) == "the dog"


def test_without_a_chat_template(tmp_path: Path) -> None:
    save_tokenizer("byte-level", tmp_path, chat_template=None)
    tokenizer = load(tmp_path)
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match="no chat template; send a prompt") as caught:
        tokenizer.encode_chat(CHAT)
    assert caught.value.code == ErrorCode.NO_CHAT_TEMPLATE
    assert caught.value.param == "messages"


def test_messages_that_the_template_refuses(tmp_path: Path) -> None:
    save_tokenizer("byte-level", tmp_path)
    with pytest.raises(InvalidRequest, match="refuses these messages: roles must alternate") as caught:
        load(tmp_path).encode_chat([CHAT[1], CHAT[1]])
    assert caught.value.code == ErrorCode.INVALID_REQUEST


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    save_tokenizer("byte-level", tmp_path)
    tokenizer = load(tmp_path)
    with pytest.raises(InvalidRequest, match="prompt cannot be tokenized") as caught:
        tokenizer.encode("\ud800")
    assert caught.value.code == ErrorCode.TOKENIZATION_FAILED
    with pytest.raises(InvalidRequest, match="messages cannot be tokenized") as caught:
        tokenizer.encode_chat([Message(Role.USER, "\ud800")])
    assert caught.value.code == ErrorCode.TOKENIZATION_FAILED


def test_end_of_sequence_ids_by_rank_of_source(tmp_path: Path) -> None:
    save_tokenizer("byte-level", tmp_path)
    assert load(tmp_path).eos_token_ids == (2,)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 9}))
    assert load(tmp_path).eos_token_ids == (9,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert load(tmp_path).eos_token_ids == (5, 6)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert load(tmp_path).eos_token_ids == (9,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "x"}))
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id must be a token id"):
        load(tmp_path)


def test_a_directory_without_tokenizer_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert Tokenizer.load(tmp_path) is None


def test_broken_tokenizer_files(tmp_path: Path) -> None:
    save_tokenizer("byte-level", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"the tokenizer cannot be loaded: ."):
        load(tmp_path)


def test_a_front_process_tokenizes_without_torch(tmp_path: Path) -> None:
    save_tokenizer("byte-level", tmp_path)
    program = (
        "import sys\n"
        "from millrace_schemas import Message, Role\n"
        "from millrace_worker import model_path, stop\n"
        "from millrace_worker.tokenizer import Tokenizer\n"
        f"tokenizer = Tokenizer.load({str(tmp_path)!r})\n"
        "ids = tokenizer.encode_chat([Message(Role.USER, 'the dog')])\n"
        "stream = tokenizer.stream()\n"
        "print(stream.push(ids) + stream.finish() == tokenizer.decode(ids) and len(ids) > 4)\n"
        "print(sys.modules.get('torch'), 'triton' in sys.modules, 'redis' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["True", "None False False"]
    assert done.stderr == ""


def test_a_process_with_torch_keeps_it(tmp_path: Path) -> None:
    save_tokenizer("byte-level", tmp_path)
    torch = sys.modules["torch"]
    assert load(tmp_path).encode("the")
    assert sys.modules["torch"] is torch
    assert torch is not None


def test_a_process_with_transformers_is_left_as_it_is(tmp_path: Path) -> None:
    save_tokenizer("byte-level", tmp_path)
    program = (
        "import transformers\n"
        "transformers.PreTrainedTokenizerFast\n"
        "from millrace_worker.tokenizer import Tokenizer\n"
        f"print(len(Tokenizer.load({str(tmp_path)!r}).encode('the')) > 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "True\n", done.stderr


def test_prompts_over_the_tokenizers_own_limit_are_no_matter_for_a_log(tmp_path: Path) -> None:
    save_tokenizer("byte-level", tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 10}))
    program = (
        "from millrace_schemas import Message, Role\n"
        "from millrace_worker.tokenizer import Tokenizer\n"
        f"tokenizer = Tokenizer.load({str(tmp_path)!r})\n"
        "text = 'the dog ' * 50\n"
        "print(len(tokenizer.encode(text)) > 50, len(tokenizer.encode_chat([Message(Role.USER, text)])) > 50)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("True True\n", "")
