"""What front and engine say to each other over their socketpair: at most one frame each way a step.

A frame is four little-endian bytes of length, then msgpack. Both processes are the same release on one machine, so
frames carry no schema version. Sequence ids are small integers that the front hands out; the engine never sees a
job id.
"""

from __future__ import annotations

import struct

import msgspec

from .cache_stats import CacheStats

MAX_FRAME_BYTES = 256 * 1024 * 1024

_LENGTH = struct.Struct("<I")


class SequenceParams(msgspec.Struct, frozen=True, array_like=True):
    """Sampling with nothing left open: limits counted, seed drawn, stop ids resolved."""

    #: Tokens to generate in total, those of earlier attempts included.
    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    #: Ids that end the sequence: the request's own, and the model's end-of-sequence ids unless ignore_eos.
    stop_token_ids: tuple[int, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    #: So many likeliest tokens beside each one's log-probability; None: no log-probabilities.
    logprobs: int | None = None
    #: Sequences of different salts share no KV blocks.
    cache_salt: str = ""
    #: Token ids, all of the vocabulary, and what is added to their logits.
    logit_bias: tuple[tuple[int, float], ...] = ()
    #: The blocks of its prompt are kept in the lower tiers of the cache when they are seen for the first time.
    marked: bool = False

    @property
    def penalised(self) -> bool:
        """Whether logits are changed before the temperature: by penalties, or by a bias."""
        penalties = self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1
        return penalties or bool(self.logit_bias)


class AddSequence(msgspec.Struct, frozen=True, array_like=True):
    """A new sequence: its prompt, and the tokens that earlier attempts generated (resumed, not sampled again)."""

    seq_id: int
    prompt: list[int]
    generated: list[int]
    params: SequenceParams
    #: Lower runs first.
    priority: int = 0


class PinnedPrefix(msgspec.Struct, frozen=True, array_like=True):
    """A beginning of prompts that is to stay in the cache: its tokens, as a sequence of this salt has them."""

    pin_id: str
    tokens: list[int]
    cache_salt: str = ""


class ToEngine(msgspec.Struct, frozen=True, tag="to_engine"):
    add: list[AddSequence] = []
    abort: list[int] = []
    #: Finish nothing more; exit.
    shutdown: bool = False
    #: A pin that is there already stays as it is.
    pin: list[PinnedPrefix] = []
    #: Ids of pins.
    unpin: list[str] = []


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """The engine will never run this sequence; `code` is an ErrorCode."""

    seq_id: int
    code: str
    message: str


class Load(msgspec.Struct, frozen=True, array_like=True):
    """The engine after a step."""

    running: int = 0
    waiting: int = 0
    #: Blocks that can be allocated now, cached ones that may be evicted included.
    free_blocks: int = 0
    total_blocks: int = 0
    #: Token slots in blocks held by running sequences, and how many of them hold a token.
    allocated_slots: int = 0
    used_slots: int = 0
    preemptions: int = 0


class PinState(msgspec.Struct, frozen=True, array_like=True):
    """Where a pinned prefix is now. `tier` is the fastest that holds all of its full blocks; "" while none does."""

    pin_id: str
    tier: str
    #: Full blocks of it.
    blocks: int
    #: Of their KV in one tier.
    bytes: int
    #: Sequences that began with all of it, since the engine started.
    hits: int
    #: Why it is not resident: "no_room", "too_short", ...; for people.
    problem: str = ""


class Likely(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A token's log-probability, and the likeliest tokens at its place: finite, of the model before penalties."""

    logprob: float
    top_ids: list[int] = []
    top: list[float] = []


class Started(msgspec.Struct, frozen=True, array_like=True):
    """A sequence was scheduled for the first time."""

    seq_id: int
    #: Tokens of its prompt that the prefix cache had, and those of them that each tier had; none of zero.
    cached: int
    by_tier: dict[str, int] = {}


class StepOutput(msgspec.Struct, frozen=True, tag="step"):
    """What one step did. Sequences in `finished` and `refused` are gone from the engine."""

    step: int
    #: (seq_id, new token ids)
    tokens: list[tuple[int, list[int]]] = []
    #: (seq_id, FinishReason)
    finished: list[tuple[int, str]] = []
    refused: list[Refusal] = []
    started: list[Started] = []
    load: Load = Load()
    #: Of the step that was launched now: how long it kept the engine, in seconds, its sequences and their tokens.
    seconds: float = 0.0
    sequences: int = 0
    batched_tokens: int = 0
    #: By seq_id, one for each of its new token ids; of those that ask for them.
    logprobs: dict[int, list[Likely]] = {}
    #: Of the step that was launched now: tokens of the KV cache that its attention reads once for several sequences,
    #: and how many it does not read again because of it.
    shared_read: int = 0
    shared_saved: int = 0
    #: All pins, when something of them has changed, at most about once a second; None: as before.
    pins: list[PinState] | None = None
    #: What the prefix cache has done, when that has changed, at most about once a second; None: as before.
    cache: CacheStats | None = None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The engine serves. Sizes after profiling the device."""

    device: str
    max_model_len: int
    max_num_seqs: int
    block_size: int
    num_blocks: int
    vocab_size: int


class StartFailed(msgspec.Struct, frozen=True, tag="start_failed"):
    """The engine cannot start, and why, in a line for the operator. It exits after this frame."""

    message: str


FromEngine = Ready | StartFailed | StepOutput

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def pack(frame: msgspec.Struct) -> bytes:
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def unpack_to_engine(body: bytes) -> ToEngine:
    return _to_engine.decode(body)


def unpack_from_engine(body: bytes) -> Ready | StartFailed | StepOutput:
    return _from_engine.decode(body)
