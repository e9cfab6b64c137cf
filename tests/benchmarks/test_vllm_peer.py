"""vLLM's adapter against a stand-in: the same jobs, its own environment, and every way to fail as a row."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from millrace_bench.comparison import Bench, PeerOptions, run_engine
from millrace_bench.results import Row
from millrace_bench.workloads import Job
from stand_in_vllm import TROUBLE, write_vllm

WARM_UP = [Job([5, 6], 2)]
GOOD, BAD = [Job([1, 2, 3], 4), Job([9], 5)], [Job([TROUBLE, 2], 6)]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_vllm(tmp_path / "site")


def run(tmp_path: Path, *workloads: tuple[str, list[Job]], repeats: int = 1, **options: Any) -> list[Row]:
    bench = Bench(
        directory=tmp_path,
        load_format="dummy",
        temperature=0.6,
        repeats=repeats,
        flags={"gpu_memory_utilization": 0.8, "max_model_len": None},
        context=2048,
        warm_up=WARM_UP,
        workloads=list(workloads),
    )
    arguments = {"record": str(tmp_path / "record"), **options.pop("arguments", {})}
    given = PeerOptions(**{"pythonpath": str(tmp_path / "site"), "vllm_args": arguments, "timeout": 60.0, **options})
    return list(run_engine("vllm", bench, given, {}, lambda words: None))


def record(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]


def test_it_gets_the_same_jobs_on_an_empty_cache_each_time(tmp_path: Path, site: Path) -> None:
    (row,) = run(tmp_path, ("good", GOOD), repeats=2)
    assert (row.failed, row.requests, row.prompt_tokens, row.output_tokens) == ("", 2, 4, 9)
    assert len(row.all_seconds) == 2
    assert row.output_tok_s > 0
    start, *asked = record(tmp_path)
    assert start["model"] == str(tmp_path)
    assert start["settings"] == {
        "load_format": "dummy", "skip_tokenizer_init": True, "dtype": "bfloat16", "gpu_memory_utilization": 0.8,
        "max_model_len": 2048, "seed": 0,
    }  # fmt: skip
    params = {"temperature": 0.6, "ignore_eos": True, "detokenize": False}
    reset, warm_up = {"reset": True}, {"prompts": [[5, 6]], "params": [{**params, "max_tokens": 2}], "use_tqdm": False}
    both = [{**params, "max_tokens": 4}, {**params, "max_tokens": 5}]
    good = {"prompts": [[1, 2, 3], [9]], "params": both, "use_tqdm": False}
    assert asked == [reset, warm_up, reset, good, reset, good]


def test_its_process_has_vllms_variables_and_none_of_our_packages(tmp_path: Path, site: Path) -> None:
    (row,) = run(tmp_path, ("good", GOOD), python=sys.executable)
    assert row.failed == ""
    start = record(tmp_path)[0]
    assert start["variables"] == {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }  # fmt: skip
    scratch, *others = start["path"].split(":")
    assert Path(scratch).name.startswith("millrace-bench-")
    assert others == [str(site)]


def test_flashinfers_sampler_is_left_alone_where_there_is_one(tmp_path: Path, site: Path) -> None:
    (site / "flashinfer.py").touch()
    run(tmp_path, ("good", GOOD))
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in record(tmp_path)[0]["variables"]


def test_an_engine_that_does_not_start_is_a_row_for_each_workload(tmp_path: Path, site: Path) -> None:
    rows = run(tmp_path, ("good", GOOD), ("other", GOOD), arguments={"trouble": "start"})
    assert [row.workload for row in rows] == ["good", "other"]
    for row in rows:
        assert row.failed == "RuntimeError: Engine core initialization failed. See root cause above."
        assert "Traceback" in Path(row.log).read_text()


def test_one_workload_that_fails_costs_that_one_alone(tmp_path: Path, site: Path) -> None:
    rows = run(tmp_path, ("one", GOOD), ("bad", BAD), ("two", GOOD), arguments={"trouble": "raise"})
    assert [(row.workload, row.failed) for row in rows] == [
        ("one", ""), ("bad", "ValueError: the prompt is too long"), ("two", ""),
    ]  # fmt: skip


def test_an_answer_of_another_length_is_no_figure(tmp_path: Path, site: Path) -> None:
    (row,) = run(tmp_path, ("bad", BAD), arguments={"trouble": "short"})
    assert row.failed == "RuntimeError: 5 tokens came back, not 6"


def test_a_process_that_dies_leaves_what_it_had_done(tmp_path: Path, site: Path) -> None:
    rows = run(tmp_path, ("one", GOOD), ("bad", BAD), ("two", GOOD), arguments={"trouble": "exit"})
    assert [row.workload for row in rows] == ["one", "bad", "two"]
    assert rows[0].failed == ""
    for row in rows[1:]:
        assert row.failed == "it ended with code 7: CUDA error: an illegal memory access was encountered"


def test_a_silent_process_is_ended_with_its_children(tmp_path: Path, site: Path) -> None:
    rows = run(tmp_path, ("one", GOOD), ("bad", BAD), arguments={"trouble": "hang"}, timeout=3.0)
    assert [row.failed for row in rows] == ["", "it said nothing for 3 s (--vs-timeout)"]
    child = record(tmp_path)[-1]["child"]
    limit = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_missing_package_and_a_missing_interpreter_are_rows(tmp_path: Path) -> None:
    (row,) = run(tmp_path, ("good", GOOD))
    assert row.failed == "ModuleNotFoundError: No module named 'vllm'"
    (row,) = run(tmp_path, ("good", GOOD), python="/no/such/python")
    assert row.failed == "/no/such/python cannot be started: No such file or directory"


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
