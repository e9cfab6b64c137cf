"""`python -m millrace_bench`: the same as `millrace bench`, where nothing is installed."""

from __future__ import annotations

from .cli import app

if __name__ == "__main__":
    app(prog_name="python -m millrace_bench")
