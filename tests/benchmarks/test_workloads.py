"""Workloads that change make old figures worthless: their ids are fixed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from millrace_bench.workloads import WORKLOADS, Job, fixed, load, named, one, warm_up

DIGESTS = {
    "nano": "19c3abaa8f72a13b",
    "chat": "5846b03f36529b06",
    "shared2k": "d18f2fc78f46e679",
    "prefill2k": "91fb71a566e9caa1",
    "decode1": "dad924ed5eb7b203",
    "decode32": "342d6e97bdc626ed",
    "decode128": "c3102d51ff73c3d8",
    "decode256": "60db0c8a08af676b",
    "mixed8k": "f4756f10ce0f372b",
}


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_the_ids_of_a_workload_are_fixed(name: str) -> None:
    ids = repr([(job.prompt, job.max_tokens) for job in load(name, 5000)])
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == DIGESTS[name]


def test_a_file_is_a_workload(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt_token_ids": [1, 2], "max_tokens": 3}\n')
    assert load(str(path), 10) == [Job([1, 2], 3)]


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"max_tokens": 3}', '{"prompt_token_ids": 7, "max_tokens": 3}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt_token_ids": [1], "max_tokens": 3}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"jobs\.jsonl:2"):
        load(str(path), 10)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"prompt_token_ids": [1, 2, -3], "max_tokens": 3}', "prompt_token_ids takes ids in [0, 2**31)"),
        (b'{"prompt_token_ids": [2147483648], "max_tokens": 3}', "prompt_token_ids takes ids in [0, 2**31)"),
        (b'{"prompt_token_ids": [1, 10], "max_tokens": 3}', "prompt_token_ids has 10, and the model"),
        (b'{"prompt_token_ids": [], "max_tokens": 3}', "prompt_token_ids must not be empty"),
        (b'{"prompt_token_ids": "123", "max_tokens": 3}', "Expected `array`, got `str`"),
        (b'{"prompt_token_ids": [3.7], "max_tokens": 3}', "Expected `int`, got `float`"),
        (b'{"prompt_token_ids": [true], "max_tokens": 3}', "Expected `int`, got `bool`"),
        (b'{"prompt_token_ids": [1], "max_tokens": "2"}', "Expected `int`, got `str`"),
        (b'{"prompt_token_ids": [1], "max_tokens": 2.9}', "Expected `int`, got `float`"),
        (b'{"prompt_token_ids": [1], "max_tokens": 0}', "max_tokens must be at least 1"),
        (b'{"prompt_token_ids": [1], "max_tokens": 2147483648}', "max_tokens must be below 2**31"),
        (b'{"prompt_token_ids": [1], "max_tokens": 2, "note": "\xff"}', "the line is not UTF-8"),
    ],
)  # fmt: skip
def test_what_no_engine_can_run_is_refused_with_its_line(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b'\n{"prompt_token_ids": [1], "max_tokens": 3}\n' + line + b"\n")
    with pytest.raises(ValueError, match="jobs") as refused:
        load(str(path), 10)
    assert str(refused.value).startswith(f"{path}:3: ")
    assert words in str(refused.value)


def test_blank_lines_are_skipped_and_other_keys_ignored(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('\n{"prompt_token_ids": [1, 2], "max_tokens": 3, "note": "a\u2028b"}\r\n \n\n', newline="")
    assert load(str(path), 10) == [Job([1, 2], 3)]


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_lines_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"jobs\.jsonl has no lines$"):
        load(str(path), 10)


@pytest.mark.parametrize("name", ["all", "nano,chat"])
def test_where_one_is_wanted_a_list_is_refused_and_all_is_none_of_the_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"--workload is '{name}'; it takes one here, of nano, chat"):
        one(name, 500)


def test_a_warm_up_fits_what_the_engine_serves() -> None:
    assert warm_up(500, 272) == fixed(500, 16, 256, 16, 99)
    for context in (2, 10, 200, 271):
        assert {len(job.prompt) + job.max_tokens for job in warm_up(500, context)} == {context}
    assert {(len(job.prompt), job.max_tokens) for job in warm_up(500, 2)} == {(1, 1)}


def test_an_unknown_workload_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="nano, chat, shared2k"):
        load("nosuch", 10)


def test_all_is_every_workload_once(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt_token_ids": [1], "max_tokens": 3}\n')
    names = [name for name, _ in named(f"decode1,all,{path}", 500)]
    assert names == [
        "decode1",
        "nano",
        "chat",
        "shared2k",
        "prefill2k",
        "decode32",
        "decode128",
        "decode256",
        path.name,
    ]
