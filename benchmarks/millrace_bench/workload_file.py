"""A workload from a file: JSON Lines with the ids of a prompt and the length of its answer.

Apart from workloads.py, which other engines' environments import without msgspec.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from .workloads import Job


class _Line(msgspec.Struct):
    prompt_token_ids: list[int]
    max_tokens: int


_decoder = msgspec.json.Decoder(_Line)


def read(path: Path, vocab_size: int) -> list[Job]:
    """The jobs of a file, one a line. Blank lines are skipped, and other keys ignored.

    Raises ValueError that names the file, and the line where it is one line's fault.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as e:
        raise ValueError(f"{path} cannot be read: {e.strerror}") from e
    jobs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            jobs.append(_job(line, vocab_size))
        except ValueError as e:
            raise ValueError(f"{path}:{number}: {e}") from e
    if not jobs:
        raise ValueError(f"{path} has no lines")
    return jobs


def _job(line: bytes, vocab_size: int) -> Job:
    try:
        # The decoder looks at no text that it skips.
        line.decode()
        entry = _decoder.decode(line)
    except UnicodeDecodeError as e:
        raise ValueError("the line is not UTF-8") from e
    except msgspec.DecodeError as e:
        raise ValueError(f"a line is {{prompt_token_ids, max_tokens}}: {e}") from e
    ids, max_tokens = entry.prompt_token_ids, entry.max_tokens
    if not ids:
        raise ValueError("prompt_token_ids must not be empty")
    if min(ids) < 0 or max(ids) >= 2**31:
        raise ValueError("prompt_token_ids takes ids in [0, 2**31)")
    if max(ids) >= vocab_size:
        raise ValueError(f"prompt_token_ids has {max(ids)}, and the model's vocabulary ends at {vocab_size - 1}")
    if max_tokens < 1:
        raise ValueError("max_tokens must be at least 1")
    if max_tokens >= 2**31:
        raise ValueError("max_tokens must be below 2**31")
    return Job(ids, max_tokens)
