from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from millrace_bench import attention_cases, kernel_bench, kernel_table, models, prefill_cases
from millrace_bench.attention_cases import AttentionSizes, Contexts, decode_case, decode_contexts
from millrace_bench.cli import app
from millrace_bench.kernel_case import difference
from millrace_kernels import _hopper_attention
from millrace_worker.models.config import ModelConfig, parse_config

SIZES = AttentionSizes(
    spread=5, shortest=8, longest=64, alone=64, group=6, common=32, own=8, prompts=2, prompt=30, after=5, cached=40
)
ATTENTION = {
    "paged_decode, 8 to 64": 5,
    "paged_decode, 8 to 64, blocks in order": 5,
    "paged_decode, 64": 1,
    "paged_decode, 64, blocks in order": 1,
    "paged_decode, 8 behind 32, read once": 6,
    "paged_decode, 8 behind 32, read by each": 6,
    "paged_decode, 8 behind 32, nothing shared": 6,
}
torch.set_num_threads(1)


def small_config() -> ModelConfig:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    return parse_config(
        {**models.MODELS["qwen3_0_6b"], **small, "head_dim": 16, "vocab_size": 300, "max_position_embeddings": 64}
    )


def figures_of(*, rows: tuple[int, ...] = (1, 3)) -> list[kernel_bench.Figure]:
    cpu = torch.device("cpu")
    torch.manual_seed(20)
    return kernel_bench.run(small_config(), cpu, torch.float32, rows=rows, context=20, turns_bytes=1 << 18, sizes=SIZES)


def test_every_kernel_of_a_step_has_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of()
    once = ["norm_linear qkv", "linear o", "norm_gated_linear gate_up", "linear down", "norm_linear lm_head"]
    once += ["rms_norm_residual", "silu_mul", "sample", "sample, top-k and top-p"]
    decode = [(f"paged_decode, 20{order}", rows) for rows in (1, 3) for order in ("", ", blocks in order")]
    assert [(f.kernel, f.rows) for f in figures] == [
        ("copy", 1), *((k, r) for r in (1, 3) for k in once), *decode, *ATTENTION.items(),
        ("paged_prefill, 1 x 20", 20), ("paged_prefill, 2 x 30", 60), ("paged_prefill, 1 x 5 behind 40", 5),
    ]  # fmt: skip
    copied = figures[0]
    for figure in figures:
        assert figure.failed == ""
        assert figure.microseconds > 0
        assert figure.rate > 0
        if figure.unit == "TB/s":
            # The bytes, by what a copy moves in that time.
            assert figure.floor_microseconds == pytest.approx(figure.rate * figure.microseconds / copied.rate)
    assert figures[-1].floor_microseconds is None
    kernel_table.show("small", figures, {"commit": "abc"})
    shown = capsys.readouterr().out
    assert all(kernel in shown for kernel in (*once, *ATTENTION))
    assert "WRONG" not in shown


def test_a_wrong_result_is_a_row_that_says_so_and_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = attention_cases.paged_decode

    def wrong(*args: torch.Tensor, **kwargs: object) -> torch.Tensor:
        found = right(*args, **kwargs)
        found[-1] *= 1.01
        return found

    monkeypatch.setattr(attention_cases, "paged_decode", wrong)
    monkeypatch.setattr(kernel_bench, "silu_mul", lambda gate_up: torch.full((len(gate_up), 96), float("nan")))
    figures = figures_of(rows=(2,))
    by_name = {figure.kernel: figure for figure in figures}
    assert by_name["silu_mul"].failed == "192 of 192 numbers are not finite"
    for figure in figures:
        if figure.kernel.startswith("paged_decode"):
            assert figure.failed.startswith(f"sequence {figure.rows - 1}: off by ")
    failed = [figure for figure in figures if figure.failed]
    assert len(failed) == 2 + len(ATTENTION) + 1
    assert all(figure.microseconds == figure.rate == 0 for figure in failed)
    kernel_table.show("small", figures, {})
    shown = capsys.readouterr().out
    assert shown.count("WRONG") == len(failed)
    assert "silu_mul, 2 rows: wrong: 192 of 192" in shown


def test_an_error_is_measured_by_torchs_own_in_that_dtype() -> None:
    x = torch.linspace(0.1, 1, 50).to(torch.bfloat16)
    assert difference(x.exp(), torch.exp, x) == ""
    assert difference(x.exp() * 1.1, torch.exp, x).startswith("off by ")
    assert difference(x[1:], torch.exp, x) == "its shape is [49], not [50]"


def test_prefill_is_measured_for_hopper_where_that_kernel_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu, sizes = parse_config(models.MODELS["qwen3_0_6b"]), torch.device("cpu"), AttentionSizes()

    def names(dtype: torch.dtype, context: int) -> list[str]:
        found = prefill_cases.prefills(config, cpu, dtype, context, sizes)
        return [prefill.name.removeprefix("paged_prefill, ") for prefill in found]

    plain = ["4 x 2,048", "1 x 64 behind 8,192"]
    assert names(torch.bfloat16, 1024) == ["1 x 1,024", *plain]
    monkeypatch.setattr(_hopper_attention, "is_hopper", lambda tensor: True)
    here = [plain[0], f"{plain[0]}, for Hopper", plain[1], f"{plain[1]}, for Hopper", f"{plain[1]}, in parts"]
    assert names(torch.bfloat16, 1024) == ["1 x 1,024", "1 x 1,024, for Hopper", *here]
    assert names(torch.bfloat16, 32) == ["1 x 32", *here]
    assert names(torch.float32, 1024) == ["1 x 1,024", *plain]


def test_contexts_lie_as_they_say() -> None:
    *_, once, hopper, each, apart = decode_contexts((), 20, SIZES)
    assert (once.hopper, hopper.hopper, hopper.grouped) == (False, True, True)
    assert [once.grouped, each.grouped, apart.grouped] == [True, False, False]
    assert once.cached_tokens == each.cached_tokens == 32 + 6 * 8
    assert apart.cached_tokens == 6 * 40
    for contexts, blocks in ((once, 2 + 6), (each, 2 + 6), (apart, 6 * 3)):
        tables, count = contexts.tables()
        assert count == len(np.unique(tables)) == blocks
        assert (tables[:, :2] == tables[0, :2]).all() == (contexts.common == 32)
    lens = np.array([20, 40], dtype=np.int32)
    in_order, _ = Contexts("", lens, contiguous=True).tables()
    assert in_order.tolist() == [[0, 1, 0], [2, 3, 4]]
    spread, *_ = decode_contexts((), 20, AttentionSizes())
    assert len(spread.lens) == 64
    assert 128 <= spread.lens.min() < 200
    assert 6000 < spread.lens.max() <= 8192


#: Runs in a process of Triton's interpreter.
_INTERPRETED = """
import runpy, sys
runpy.run_path(sys.argv[1])
import torch
import test_kernels
print(test_kernels.interpreted_faults())
"""


def interpreted_faults() -> list[str]:
    """Of decode by the kernels themselves, each by a plan that was made before, twice: it is left as it was."""
    # Few programs: each takes the interpreter a while.
    attention_cases._PROCESSORS = 4
    torch.manual_seed(20)
    found = []
    with torch.inference_mode():
        for contexts in decode_contexts((2,), 20, SIZES):
            case = decode_case(small_config(), torch.device("cpu"), torch.float32, contexts, 1)
            case.ours(0)
            found += [f"{contexts.name}: {case.wrong()}"] if case.wrong() else []
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the device")
def test_the_plans_are_those_of_the_kernels() -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED, str(here.parent / "kernels" / "conftest.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "[]"


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
