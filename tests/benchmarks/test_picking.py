from __future__ import annotations

import json

from typer.testing import CliRunner

from millrace_bench.cli import app


def test_picking_saves_prefill_and_makes_larger_groups() -> None:
    arguments = "--jobs 120 --systems 8 --system-tokens 512 --rows 16 --blocks 320 --prefix-waits 0,5 --orders 1"
    found = CliRunner().invoke(app, ["picking", *arguments.split(), "--json"])
    assert found.exit_code == 0, found.output
    strict, picked = (json.loads(line) for line in found.output.splitlines())
    assert (strict["prefix_wait"], picked["prefix_wait"]) == (0, 5)
    assert picked["computed"] < 0.8 * strict["computed"]
    assert picked["group"] > 1.2 * strict["group"]


def test_what_cannot_be_is_refused() -> None:
    for arguments, words in (("--blocks 20", "--blocks is 20"), ("--prefix-waits 1,x", "--prefix-waits is '1,x'")):
        found = CliRunner().invoke(app, ["picking", *arguments.split()])
        assert found.exit_code == 1
        assert words in found.output
