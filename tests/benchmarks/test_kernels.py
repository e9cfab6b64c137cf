from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from millrace_bench import kernel_bench, kernel_table, models
from millrace_bench.cli import app
from millrace_worker.models.config import parse_config


def test_every_kernel_of_a_step_has_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = parse_config(
        {**models.MODELS["qwen3_0_6b"], **small, "head_dim": 16, "vocab_size": 300, "max_position_embeddings": 64}
    )
    figures = kernel_bench.run(config, torch.device("cpu"), torch.float32, rows=(1, 3), context=20, turns_bytes=1 << 18)
    once = ["norm_linear qkv", "linear o", "norm_gated_linear gate_up", "linear down", "norm_linear lm_head"]
    once += ["paged_decode", "rms_norm_residual", "silu_mul", "sample"]
    assert [(f.kernel, f.rows) for f in figures] == [*((k, r) for r in (1, 3) for k in once), ("paged_prefill", 20)]
    for figure in figures:
        assert figure.microseconds > 0
        assert figure.rate > 0
    kernel_table.show("small", figures, {"commit": "abc"})
    shown = capsys.readouterr().out
    assert all(kernel in shown for kernel in once)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_one_line_says_so() -> None:
    for argument, reason in (
        (["--model", "llama8b"], "CUDA device"),
        (["--model", "llama8b", "--rows", "0"], "at least 1"),
    ):
        found = CliRunner().invoke(app, ["kernels", *argument])
        assert found.exit_code == 1
        assert found.output.startswith("error: ")
        assert reason in found.output
