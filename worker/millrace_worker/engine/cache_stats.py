"""What the prefix cache has done, by tier."""

from __future__ import annotations

import msgspec


class CacheStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the engine's start; the first three are of now."""

    #: Records on the disk, and the bytes that they take.
    disk_blocks: int = 0
    disk_bytes: int = 0
    #: Records in the bucket, as far as it is known.
    s3_blocks: int = 0
    #: Tokens of prompts, when first started, and those of them whose KV was there.
    prompt_tokens: int = 0
    gpu_hit_tokens: int = 0
    disk_hit_tokens: int = 0
    s3_hit_tokens: int = 0
    #: Sequences whose KV was read, or was on the disk and quicker to compute.
    loads: int = 0
    recomputes: int = 0
    read_blocks: int = 0
    read_bytes: int = 0
    written_blocks: int = 0
    written_bytes: int = 0
    #: Why a prompt's KV was not had from the disk, by reason: sequences.
    misses: dict[str, int] = {}
    #: Why a block that was worth it was not written, by reason: blocks.
    unwritten: dict[str, int] = {}
    #: Fields of the identity that differ from that of the blocks found at the start, where none were its own.
    changed_identity: tuple[str, ...] = ()
    #: Times that records were fetched from the bucket, and that they were there and quicker to compute.
    fetches: int = 0
    fetch_recomputes: int = 0
    fetched_blocks: int = 0
    fetched_bytes: int = 0
    #: Blocks that were written to the bucket, that another worker had written, and that a full queue was not to hold.
    stored_blocks: int = 0
    present_blocks: int = 0
    unstored_blocks: int = 0
    #: Objects of the bucket that were no good.
    spoilt_blocks: int = 0
    #: Why blocks that the disk has not were not had from the bucket, by reason: sequences, and fetches.
    s3_misses: dict[str, int] = {}
    #: Requests to the bucket that failed, by what they were and why: "store_denied".
    s3_failures: dict[str, int] = {}
