"""A worker process with the fake engine and tokenizer: "name=value" settings, "--", the engine's arguments."""

from __future__ import annotations

import sys
from pathlib import Path

from fake_text import LetterTokenizer
from millrace_worker.cli import run_worker
from millrace_worker.config import load
from millrace_worker.front.text import TextTools
from millrace_worker.stop import StopChecker

if __name__ == "__main__":
    at = sys.argv.index("--")
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:at])
    engine = [sys.executable, str(Path(__file__).parent / "fake_engine.py"), *sys.argv[at + 1 :]]
    tools = TextTools(LetterTokenizer(), StopChecker)
    sys.exit(run_worker(load(settings), tools=tools, engine_command=engine))
