"""Limits of bulk files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkSettings:
    #: Seconds after which a batch whose worker died is taken up by another.
    lease: float = 15.0
    #: Seconds that one RQ job works on a batch while others wait for their turn.
    turn: float = 5.0
    #: Seconds that an answer may be in memory only, and bytes of them.
    flush_seconds: float = 10.0
    flush_bytes: int = 8 * 1024 * 1024
    #: Jobs of one shard in its queue at once.
    window: int = 2048
    #: Bytes of the input, or rows of Parquet, that one process works on at a time.
    shard_bytes: int = 64 * 1024 * 1024
    shard_rows: int = 65_536
    #: Lines, and bytes of them, that are brought into an order in which those that begin alike meet.
    page_lines: int = 16_384
    page_bytes: int = 16 * 1024 * 1024
    #: Requests of one file.
    max_lines: int = 5_000_000
    #: Seconds that jobs have to end after their batch was cancelled or expired.
    ending: float = 60.0
    #: Seconds until a batch that cannot go on is tried again.
    pause: float = 5.0
