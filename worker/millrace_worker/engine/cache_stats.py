"""What the prefix cache has done, by tier."""

from __future__ import annotations

import msgspec


class CacheStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the engine's start; the first two are of now."""

    #: Records on the disk, and the bytes that they take.
    disk_blocks: int = 0
    disk_bytes: int = 0
    #: Tokens of prompts, when first started, and those of them whose KV was there.
    prompt_tokens: int = 0
    gpu_hit_tokens: int = 0
    disk_hit_tokens: int = 0
    #: Sequences whose KV was read, or was on the disk and quicker to compute.
    loads: int = 0
    recomputes: int = 0
    read_blocks: int = 0
    read_bytes: int = 0
    written_blocks: int = 0
    written_bytes: int = 0
    #: Why a prompt's KV was not had from the disk, by reason: sequences.
    misses: dict[str, int] = {}
    #: Why a sequence that began with a pinned prefix did not find all of it, by reason: sequences.
    pinned_misses: dict[str, int] = {}
    #: Why a block that was worth it was not written, by reason: blocks.
    unwritten: dict[str, int] = {}
    #: Fields of the identity that differ from that of the blocks found at the start, where none were its own.
    changed_identity: tuple[str, ...] = ()
