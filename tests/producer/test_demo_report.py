from __future__ import annotations

import io
import json

import msgspec
import pytest
from rich.console import Console

from millrace import Choice, ErrorCode, ErrorInfo, FinishReason, JobState, Result, Timings, Usage, WorkerInfo
from millrace.demo_report import DemoAnswer, DemoPrompt, DemoReport, percentile


def answer(task: str, text: str, expected: str, *, ttft: float | None = 0.1, tokens: int = 4) -> DemoAnswer:
    choice = Choice(0, text, tuple(range(tokens)), FinishReason.STOP)
    result = Result(
        id=f"demo-{task}",
        model="demo",
        state=JobState.COMPLETED,
        choices=(choice,),
        usage=Usage(prompt_tokens=100, completion_tokens=tokens, cached_tokens=60),
        timings=Timings(queued=0.5, ttft=ttft, total=1.0),
    )
    return DemoAnswer(DemoPrompt(task, "system", f"question [bold]{task}[/bold]", expected), result)


def failed() -> DemoAnswer:
    error = ErrorInfo(ErrorCode.ENGINE_FAILED, "the engine died")
    return DemoAnswer(
        DemoPrompt("sums", "s", "1+1", "2"), Result(id="demo-x", model="demo", state=JobState.FAILED, error=error)
    )


def beat(**counts: int) -> WorkerInfo:
    return WorkerInfo(name="w", model="demo", host="h", pid=1, device="cpu", started_at=0.0, beat_at=0.0, **counts)


def test_numbers() -> None:
    answers = [answer("sums", "2", "2"), answer("sums", "3", "2", ttft=0.3), answer("orders", "{}\n", "{}", ttft=None)]
    workers = [beat(kv_allocated_slots=60, kv_used_slots=54), beat(kv_allocated_slots=40, kv_used_slots=36)]
    report = DemoReport(answers, 2.0, workers)
    found = report.as_dict()
    assert (found["jobs"], found["failed"], found["right"], found["output_tokens"]) == (3, 0, 2, 12)
    assert found["output_tokens_per_second"] == 6.0
    assert (found["ttft_p50"], found["ttft_p95"]) == (pytest.approx(0.6), pytest.approx(0.8))
    assert found["cached_prompt_share"] == pytest.approx(0.6)
    assert found["kv_waste"] == pytest.approx(0.1)
    assert [a["right"] for a in found["answers"]] == [True, False, True]
    assert json.loads(msgspec.json.encode(found)) == found
    assert report.failures == []


def test_failures_are_named_and_never_right() -> None:
    report = DemoReport([failed(), answer("sums", "2", "2")], 1.0)
    assert report.failures == [("demo-x", "the engine died")]
    found = report.as_dict()
    assert (found["failed"], found["right"], found["kv_waste"]) == (1, 1, None)


def test_a_run_that_measured_nothing() -> None:
    found = DemoReport([failed()], 0.0).as_dict()
    assert (found["output_tokens_per_second"], found["ttft_p50"], found["cached_prompt_share"]) == (None, None, None)


def test_what_is_printed() -> None:
    out = io.StringIO()
    answers = [answer("sums", "2", "2"), answer("orders", "[x]", "[y]"), failed()]
    DemoReport(answers, 1.0, [beat(kv_allocated_slots=100, kv_used_slots=97)]).print(Console(file=out, width=140))
    text = out.getvalue()
    assert "question [bold]sums[/bold]" in text
    assert "✓" in text
    assert "✗ [y]" in text
    assert "the engine died" in text
    assert text.splitlines()[-1] == (
        "3 jobs, 1 failed, 1 exactly right · 8 output tokens/s · TTFT p50 0.60 s, p95 0.60 s · "
        "60.0% of prompt tokens from the prefix cache · KV waste 3.0%"
    )


def test_in_a_narrow_terminal_the_numbers_break_between_words() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    DemoReport([answer("sums", "2", "2")], 1.0, [beat(kv_allocated_slots=100, kv_used_slots=97)]).print(console)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[-2].startswith("1 jobs, 0 failed")


def test_the_table_shows_every_task() -> None:
    answers = [answer(task, "2", "2") for task in ["a"] * 30 + ["b"] * 2 + ["c"]]
    shown = DemoReport(answers, 1.0).shown()
    assert len(shown) == 10
    assert [a.prompt.task for a in shown[:5]] == ["a", "b", "c", "a", "b"]


def test_percentiles() -> None:
    values = [float(i) for i in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 95), percentile(values, 100)) == (50.0, 95.0, 100.0)
    assert percentile([7.0], 95) == 7.0
    assert percentile([], 50) is None
