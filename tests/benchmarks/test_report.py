"""`millrace bench report` on a fixture: ratios, a picture that is XML, and what people wrote stays."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from typer.testing import CliRunner

from millrace_bench.cli import app
from millrace_bench.report import BEGIN, END
from millrace_bench.results import ENGINE, THROUGH_REDIS, Results, Row, free_path, save

SVG = "{http://www.w3.org/2000/svg}"


def row(engine: str, workload: str, output: float, total: float, **fields: object) -> Row:
    values = {"requests": 4, "prompt_tokens": 40, "output_tokens": 80, "seconds": 1.0, **fields}
    return Row(engine=engine, workload=workload, output_tok_s=output, total_tok_s=total, **values)  # type: ignore[arg-type]


RESULTS = Results(
    date="2026-01-02T03:04:05Z",
    model="llama8b",
    what="throughput-through-redis-vs-vllm-vs-transformers",
    environment={"device": "NVIDIA H200", "driver": "580.1", "commit": "abc"},
    settings={"repeats": 2, "max_model_len": None},
    engines={"millrace": {"blocks": "9"}, "vllm": {"vllm": "0.26.0"}},
    rows=(
        row("vllm", "chat", 10_000, 21_000),
        row("vllm", "prefill2k", 20, 40_000, output_tokens=4),
        row(ENGINE, "chat", 12_000, 25_000, figures={"host_ms_per_step": 3.456, "sequences_per_step": 250.0}),
        row(ENGINE, "prefill2k", 22, 44_000, output_tokens=4),
        row(THROUGH_REDIS, "chat", 11_760, 24_000),
        row(THROUGH_REDIS, "prefill2k", 21, 42_240, output_tokens=4),
        row("transformers", "chat", 300, 600, share=0.25),
        Row(engine="transformers", workload="prefill2k", failed="OutOfMemoryError: a | b", log=""),
    ),
)


def report(tmp_path: Path) -> tuple[str, str]:
    done = CliRunner().invoke(app, ["report", "--results-dir", str(tmp_path / "r"), "--docs", str(tmp_path / "docs")])
    assert done.exit_code == 0, done.output
    docs = tmp_path / "docs"
    return (docs / "benchmarks.md").read_text(), (docs / "images" / "throughput.svg").read_text()


def test_the_table_has_rates_and_ratios(tmp_path: Path) -> None:
    save(tmp_path / "r" / "one.json", RESULTS)
    page, _ = report(tmp_path)
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert lines[2:] == [
        "| chat | output | 12,000 | 11,760 | 98.0 % met | 10,000 | 1.20 | 300 (25% done) | 40.00 | 3.46 | 250.0 |",
        "| prefill2k | all tokens | 44,000 | 42,240 | 96.0 % MISSED | 40,000 | 1.10 | failed |  |  |  |",
    ]
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert "- transformers, prefill2k: OutOfMemoryError: a | b" in page
    for words in ("driver 580.1", "commit abc", "vLLM: vllm 0.26.0", "`repeats` 2", "images/throughput.svg"):
        assert words in page
    assert "max_model_len" not in page


def test_the_picture_has_a_bar_for_each_figure(tmp_path: Path) -> None:
    save(tmp_path / "r" / "one.json", RESULTS)
    older = msgspec.structs.replace(RESULTS, date="2025-01-02T03:04:05Z")
    save(tmp_path / "r" / "older.json", older)
    other = msgspec.structs.replace(RESULTS, model="a < b & c", rows=RESULTS.rows[:1])
    save(tmp_path / "r" / "other.json", other)
    _, picture = report(tmp_path)
    root = ElementTree.fromstring(picture)
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert "llama8b on NVIDIA H200, 2026-01-02" in texts
    assert not [text for text in texts if "2025" in text]
    assert "a < b & c on NVIDIA H200, 2026-01-02" in texts
    bars = [bar for bar in root.iter(f"{SVG}rect") if len(bar)]
    assert len(bars) == 7 + 1
    widths = {bar[0].text: float(bar.attrib["width"]) for bar in bars}
    assert widths["chat, vLLM: 10,000 tok/s"] in (480.0, 400.0)
    assert widths["chat, transformers: 300 tok/s, 25% done"] == pytest.approx(480 * 300 / 12_000)
    assert widths["prefill2k, Millrace: 44,000 tok/s with prompts"] == 480.0
    assert "prefers-color-scheme: dark" in picture


def test_it_is_repeatable_and_leaves_what_people_wrote(tmp_path: Path) -> None:
    save(tmp_path / "r" / "one.json", RESULTS)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "benchmarks.md"
    page.write_text(f"# Ours\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    first, _ = report(tmp_path)
    second, _ = report(tmp_path)
    assert first == second
    assert first.startswith(f"# Ours\n\nbefore\n\n{BEGIN}\n\n![")
    assert first.endswith(f"{END}\n\nafter\n")
    assert "old" not in first


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r/bad.json", "{}", "bad.json is no file of results"),
        ("docs/benchmarks.md", "# No markers\n", "results: begin"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    save(tmp_path / "r" / "one.json", RESULTS)
    (tmp_path / "docs").mkdir()
    (tmp_path / name).write_text(content)
    done = CliRunner().invoke(app, ["report", "--results-dir", str(tmp_path / "r"), "--docs", str(tmp_path / "docs")])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


def test_files_are_named_by_date_model_what_and_device(tmp_path: Path) -> None:
    first = free_path(tmp_path, RESULTS)
    assert first.name == "2026-01-02-llama8b-throughput-through-redis-vs-vllm-vs-transformers-nvidia-h200.json"
    save(first, RESULTS)
    assert free_path(tmp_path, RESULTS).name.endswith("-nvidia-h200-2.json")
