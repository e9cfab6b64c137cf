"""A whole worker but for its model: the real front and stream code, with an engine that repeats the end of its prompt.

Run as `python -m millrace_bench.bulk_chaos_worker <redis url> <lease in s> <rows> <seconds a step>`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from millrace_schemas import Message
from millrace_worker.cli import run_worker
from millrace_worker.config import load
from millrace_worker.front.text import TextTools
from millrace_worker.stop import StopChecker

MODEL = "chaos"
#: A job is never to fail because its workers were killed too often.
_ATTEMPTS = 1000


class CharacterTokenizer:
    """A token is one ASCII character."""

    has_chat_template = True
    eos_token_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode("".join(message.content for message in messages))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((token_id,))

    def stream(self) -> CharacterStream:
        return CharacterStream()


class CharacterStream:
    """No character is ever half there."""

    def push(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()

    def finish(self) -> str:
        return ""


def main(url: str, lease: str, rows: str, step: str) -> int:
    settings = {
        "redis_url": url, "lease": lease, "served_model_name": MODEL, "max_attempts": _ATTEMPTS, "retry_delay": 0.1,
        "grace": 5.0, "log_format": "json",
    }  # fmt: skip
    engine = [sys.executable, "-m", "millrace_bench.bulk_chaos_engine", "--rows", rows, "--step", step]
    return run_worker(load(settings), tools=TextTools(CharacterTokenizer(), StopChecker), engine_command=engine)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
