"""What the prefix cache has done, by tier: "gpu", "cpu", "disk", "s3"."""

from __future__ import annotations

import msgspec


class CacheStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the engine's start; the first three are of now."""

    #: Blocks that can be found and the bytes that they take, by tier.
    blocks: dict[str, int] = {}
    bytes: dict[str, int] = {}
    #: Of the tiers below the device that were asked for: 1, or 0 while it cannot be used at all.
    open: dict[str, int] = {}
    #: Tokens of prompts, when first started, and those of them whose KV was there, by tier.
    prompt_tokens: int = 0
    hit_tokens: dict[str, int] = {}
    #: Sequences for which a tier was read, and for which computing was quicker than that, by lower tier.
    loads: dict[str, int] = {}
    recomputes: dict[str, int] = {}
    #: Full blocks of prompts, when first started, and about how many different ones those were.
    lookups: int = 0
    distinct: int = 0
    #: Records of the disk.
    read_blocks: int = 0
    read_bytes: int = 0
    written_blocks: int = 0
    written_bytes: int = 0
    #: Blocks of preempted sequences that were copied to the CPU tier.
    swapped_blocks: int = 0
    #: Why a prompt's KV was not had from a lower tier, by reason: sequences.
    misses: dict[str, int] = {}
    #: Why a sequence that began with a pinned prefix did not find all of it, by reason: sequences.
    pinned_misses: dict[str, int] = {}
    #: Why a block that was worth it was not kept, by reason: blocks.
    unwritten: dict[str, int] = {}
    #: Fields of the identity that differ from that of the blocks found at the start, where none were its own.
    changed_identity: tuple[str, ...] = ()
    #: Blocks that were fetched from the bucket.
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

    @property
    def gpu_hit_tokens(self) -> int:
        return self.hit_tokens.get("gpu", 0)

    @property
    def cpu_hit_tokens(self) -> int:
        return self.hit_tokens.get("cpu", 0)

    @property
    def disk_hit_tokens(self) -> int:
        return self.hit_tokens.get("disk", 0)

    @property
    def s3_hit_tokens(self) -> int:
        return self.hit_tokens.get("s3", 0)

    @property
    def s3_blocks(self) -> int:
        return self.blocks.get("s3", 0)

    @property
    def disk_blocks(self) -> int:
        return self.blocks.get("disk", 0)

    @property
    def disk_bytes(self) -> int:
        return self.bytes.get("disk", 0)
