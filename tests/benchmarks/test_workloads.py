"""Workloads that change make old figures worthless: their ids are fixed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from millrace_bench.workloads import WORKLOADS, Job, load, named

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
