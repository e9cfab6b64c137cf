from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from millrace_bench.cli import app


def test_a_workload_that_the_model_cannot_run_is_one_line(tmp_path: Path) -> None:
    workload = tmp_path / "long.jsonl"
    workload.write_text('{"prompt_token_ids": [5, 6], "max_tokens": 3000}\n')
    found = CliRunner().invoke(app, ["throughput", "--model", "demo", "--workload", str(workload), "--repeats", "1"])
    assert found.exit_code == 1
    (line,) = (line for line in found.output.splitlines() if line.startswith("error: "))
    assert "request 0 was refused" in line
    assert "more than the 2048 that this model serves" in line
    assert isinstance(found.exception, SystemExit)
