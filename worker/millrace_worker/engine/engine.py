"""The engine: step = schedule, launch, complete."""

from __future__ import annotations

import gc
import time
from typing import Any

import structlog
import torch

from millrace_schemas import ErrorCode
from millrace_worker.config import EngineConfig
from millrace_worker.errors import ModelError
from millrace_worker.frames import AddSequence, Likely, Ready, Refusal, SequenceParams, StepOutput
from millrace_worker.model_path import resolve_model
from millrace_worker.models import load_model
from millrace_worker.models.batch import ForwardBatch
from millrace_worker.models.config import ModelConfig
from millrace_worker.models.decoder import Decoder

from . import kv_cache
from .block_pool import BlockPool
from .pace import Pace
from .runner import Launched, ModelRunner
from .scheduler import Scheduler
from .sequence import Sequence
from .step import SEQUENCE_COST

log = structlog.get_logger()

#: Bytes of a GPU that has room for many sequences.
_LARGE = 64 * 2**30
#: Steps of one sequence at the start.
_SMALL_STEPS = 4


class Engine:
    """A model, its KV cache and the sequences in them. Single-threaded; `step` until `has_work` is false."""

    def __init__(self, config: EngineConfig, *, overlap: bool | None = None) -> None:
        """Loads the model and takes the memory. `overlap` keeps two steps in flight; None: on CUDA.

        Raises ModelError, in words for the operator, when the model or the memory cannot be had.
        """
        self.device = _device(config.device)
        model, model_config = load_model(
            resolve_model(config.model),
            # Half precision is slower than float32 on most CPUs, and the models served there are small.
            dtype="float32" if config.dtype == "auto" and self.device.type == "cpu" else config.dtype,
            device=self.device,
            load_format=config.load_format,
            seed=config.seed,
        )
        self.model_config = model_config
        max_num_seqs = config.max_num_seqs or _most_sequences(self.device)
        cache, max_model_len = _make_cache(config, model, model_config, max_num_seqs, self.device)
        self.ready = Ready(
            device=_device_name(self.device),
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            block_size=config.block_size,
            num_blocks=cache.shape[0],
            vocab_size=model_config.vocab_size,
        )
        self.scheduler = Scheduler(
            BlockPool(cache.shape[0]),
            block_size=config.block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
            long_prefill_token_threshold=config.long_prefill_token_threshold,
        )
        self._pace = Pace(config.max_num_batched_tokens + max_num_seqs * SEQUENCE_COST)
        self.scheduler.allowance = self._pace.allowance
        self.runner = ModelRunner(
            model,
            cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            share_runs=config.enable_prefix_caching,
        )
        if self.device.type == "cuda":
            self.runner.warm_up(model_config.vocab_size)
            if not config.enforce_eager:
                self.runner.capture()
        #: On a device of its own the next step is launched before the last one's tokens are read.
        self._overlap = self.device.type == "cuda" if overlap is None else overlap
        self._launched: Launched | None = None
        #: Time spent waiting for the device.
        self.wait_seconds = 0.0
        self._steps = 0
        self._refused: list[Refusal] = []
        self._finished: list[tuple[int, str]] = []
        self._take_small_steps()
        log.info(
            "engine ready", model=config.model, dtype=str(cache.dtype).removeprefix("torch."), **_sizes(self.ready)
        )

    @property
    def has_work(self) -> bool:
        waiting = self._launched is not None or bool(self._refused) or bool(self._finished)
        return waiting or self.scheduler.has_work

    def add(self, new: AddSequence) -> None:
        """Takes a sequence in; one that can never run is refused in the next StepOutput."""
        refusal = self._refusal(new)
        if refusal is not None:
            self._refused.append(refusal)
            return
        seq = Sequence(new.seq_id, new.prompt, new.generated, new.params, new.priority)
        reason = Scheduler.finish_reason(seq)
        if reason is not None:  # resumed after its last token, before its result was written
            self._finished.append((seq.seq_id, reason))
            return
        self.scheduler.add(seq)

    def abort(self, seq_id: int) -> None:
        self.scheduler.abort(seq_id)

    def step(self) -> StepOutput:
        """Launches one forward pass, if anything can run, and reports what came of the one before, or of this one."""
        began = time.perf_counter()
        step = self.scheduler.schedule()
        started, self.scheduler.started = self.scheduler.started, []
        tokens: list[tuple[int, list[int]]] = []
        finished, self._finished = self._finished, []
        logprobs: dict[int, list[Likely]] = {}
        load = self.scheduler.load()
        launched = None if step is None else self.runner.launch(step)
        if self._overlap:
            launched, self._launched = self._launched, launched
        if launched is not None:
            start = time.perf_counter()
            sampled = launched.wait()
            self.wait_seconds += time.perf_counter() - start
            completion = self.scheduler.complete(launched.step, sampled)
            tokens = completion.tokens
            finished += completion.finished
            found = launched.logprobs()
            logprobs = {seq_id: [found[seq_id]] for seq_id, _ in tokens if seq_id in found} if found else {}
        refused, self._refused = self._refused, []
        self._steps += 1
        seconds = time.perf_counter() - began
        if launched is not None:
            # With two steps in flight it was the one before that was waited for.
            self._pace.observe(launched.step.cost, seconds)
            self.scheduler.allowance = self._pace.allowance
        sequences, batched = (len(step.scheduled), step.num_tokens) if step is not None else (0, 0)
        return StepOutput(self._steps, tokens, finished, refused, started, load, seconds, sequences, batched, logprobs)

    def _take_small_steps(self) -> None:
        """How quick a step can be, before jobs come: full ones alone would not tell."""
        count = min(_SMALL_STEPS, self.ready.max_model_len - 1)
        self.scheduler.add(Sequence(0, [0], [], SequenceParams(max_tokens=count, temperature=0.0), priority=1))
        while self.has_work:
            self.step()
        self._steps, self.wait_seconds = 0, 0.0

    def reset_prefix_cache(self) -> None:
        """Forgets all cached blocks that no sequence holds. For benchmarks."""
        self.scheduler.pool.forget_all()

    def _refusal(self, new: AddSequence) -> Refusal | None:
        limit, prompt, answer = self.ready.max_model_len, len(new.prompt), new.params.max_tokens
        if prompt + answer > limit:
            return Refusal(
                new.seq_id,
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"the prompt has {prompt} tokens and the answer may have {answer}, together more than the "
                f"{limit} that this model serves",
            )
        if not new.prompt:
            return Refusal(new.seq_id, ErrorCode.INVALID_REQUEST, "the prompt has no tokens")
        worst = max(max(new.prompt), max(new.params.stop_token_ids, default=0))
        if worst >= self.model_config.vocab_size:
            return Refusal(
                new.seq_id,
                ErrorCode.INVALID_REQUEST,
                f"token id {worst} is not in the model's vocabulary of {self.model_config.vocab_size}",
            )
        return None


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ModelError(f"device={name!r}: {str(e).splitlines()[0]}") from e
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"device={name!r}: Millrace runs on cuda and cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device={name!r}: torch {torch.__version__} sees no CUDA device")
    if device.type == "cuda" and device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise ModelError(f"device={name!r}: torch sees {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
        # The kernels launch on the current device.
        torch.cuda.set_device(device)
    return device


def _most_sequences(device: torch.device) -> int:
    """By how many a device's memory can hold with contexts of ordinary length."""
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= _LARGE
    return 1024 if large else 256


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _sizes(ready: Ready) -> dict[str, int | str]:
    return {name: getattr(ready, name) for name in ("device", "max_model_len", "block_size", "num_blocks")}


def _make_cache(
    config: EngineConfig, model: Decoder, model_config: ModelConfig, max_num_seqs: int, device: torch.device
) -> tuple[torch.Tensor, int]:
    """The KV cache, sized by what a step at the token budget leaves, and the longest sequence that it serves."""
    dtype = model.dtype
    bytes_per_block = kv_cache.block_bytes(model_config, config.block_size, dtype)
    peak = _profile(config, model, model_config, max_num_seqs, device) if device.type == "cuda" else 0
    budget = kv_cache.cache_budget(config, device, peak)
    num_blocks, max_model_len = kv_cache.settle_sizes(config, model_config, budget, bytes_per_block)
    return kv_cache.allocate(num_blocks, model_config, config.block_size, dtype, device), max_model_len


@torch.inference_mode()
def _profile(
    config: EngineConfig, model: Decoder, model_config: ModelConfig, max_num_seqs: int, device: torch.device
) -> int:
    """Peak bytes of torch's allocator in a step at the token budget, weights included."""
    length = min(config.max_num_batched_tokens, model_config.max_context)
    count = max(1, config.max_num_batched_tokens // length)
    tokens = length * count
    width = -(-length // config.block_size)
    scratch = kv_cache.allocate(1, model_config, config.block_size, model.dtype, device).zero_()
    ints: dict[str, Any] = {"dtype": torch.int64, "device": device}
    batch = ForwardBatch(
        input_ids=torch.zeros(tokens, **ints),
        positions=torch.arange(length, **ints).repeat(count),
        slot_mapping=torch.full((tokens,), -1, **ints),
        num_decodes=0,
        block_tables=torch.zeros((count, width), dtype=torch.int32, device=device),
        lines=torch.arange(count, dtype=torch.int32, device=device),
        context_lens=torch.full((count,), length, dtype=torch.int32, device=device),
        cu_seqlens_q=torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device),
        max_query_len=length,
        logits_rows=torch.arange(min(max_num_seqs, tokens), **ints),
    )
    torch.cuda.reset_peak_memory_stats(device)
    logits = model.forward(batch, scratch)
    logits.float()  # what sampling may need on top
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del logits, batch, scratch
    gc.collect()
    torch.cuda.empty_cache()
    return peak
