"""The engine: a model with its memory, and the loop that runs it."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import structlog
import torch

from millrace_worker.config import EngineConfig
from millrace_worker.errors import ModelError
from millrace_worker.frames import Ready, SequenceParams
from millrace_worker.model_path import resolve_model
from millrace_worker.models import load_model
from millrace_worker.models.batch import ForwardBatch
from millrace_worker.models.config import ModelConfig
from millrace_worker.models.decoder import Decoder

from . import kv_cache
from .block_pool import BlockPool
from .loop import StepLoop
from .runner import ModelRunner
from .scheduler import Scheduler
from .sequence import Sequence
from .tier_setup import open_tiers

log = structlog.get_logger()

#: Bytes of a GPU that has room for many sequences.
_LARGE = 64 * 2**30
#: Steps of one sequence at the start.
_SMALL_STEPS = 4


class Engine(StepLoop):
    """A model, its KV cache and the sequences in them."""

    def __init__(self, config: EngineConfig, *, overlap: bool | None = None) -> None:
        """Loads the model and takes the memory. `overlap` keeps two steps in flight; None: on CUDA.

        Raises ModelError, in words for the operator, when the model or the memory cannot be had.
        """
        self.device = _device(config.device)
        directory = resolve_model(config.model)
        model, model_config = load_model(
            directory,
            # Half precision is slower than float32 on most CPUs, and the models served there are small.
            dtype="float32" if config.dtype == "auto" and self.device.type == "cpu" else config.dtype,
            device=self.device,
            load_format=config.load_format,
            seed=config.seed,
        )
        self.model_config = model_config
        max_num_seqs = config.max_num_seqs or _most_sequences(self.device)
        cache, max_model_len = _make_cache(config, model, model_config, max_num_seqs, self.device)
        ready = Ready(
            device=_device_name(self.device),
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            block_size=config.block_size,
            num_blocks=cache.shape[0],
            vocab_size=model_config.vocab_size,
        )
        runner = ModelRunner(
            model,
            cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            share_runs=config.enable_prefix_caching,
        )
        if self.device.type == "cuda":
            runner.warm_up(model_config.vocab_size)
            if not config.enforce_eager:
                runner.capture()
        pool = BlockPool(cache.shape[0])
        tier = open_tiers(config, directory, model_config, model.dtype, cache, pool)
        self._new_scheduler = partial(
            Scheduler,
            pool,
            block_size=config.block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
            long_prefill_token_threshold=config.long_prefill_token_threshold,
            prefix_wait=config.prefix_wait,
        )
        #: Below the pool; None: there are none.
        self.tiers = tier
        scheduler = self._new_scheduler(tier=tier)
        super().__init__(ready, scheduler, runner, overlap=self.device.type == "cuda" if overlap is None else overlap)
        self._take_small_steps()
        if tier is not None:
            tier.s3.wait_listed()
        log.info(
            "engine ready", model=config.model, dtype=str(cache.dtype).removeprefix("torch."), **_sizes(self.ready)
        )

    def _take_small_steps(self) -> None:
        """How quick a step can be, before jobs come: full ones alone would not tell."""
        count = min(_SMALL_STEPS, self.ready.max_model_len - 1)
        self.scheduler.add(Sequence(0, [0], [], SequenceParams(max_tokens=count, temperature=0.0), priority=1))
        while self.has_work:
            self.step()
        self._forget_times()

    def reset_prefix_cache(self) -> None:
        """Forgets all cached blocks that no sequence holds. For benchmarks.

        Pins come back after a while without jobs.
        """
        self.scheduler.pins.let_go_all()
        self.scheduler.pool.forget_all()

    def close(self) -> None:
        super().close()
        if self.tiers is not None and self.scheduler.tier is not self.tiers:
            self.tiers.close()

    def use_tiers(self, on: bool) -> None:
        """Whether sequences that come now use the tiers below the pool; they keep what they have. For benchmarks.

        Only without work and pins.
        """
        assert not self.has_work
        allowance = self.scheduler.allowance
        self.scheduler = self._new_scheduler(tier=self.tiers if on else None)
        self.scheduler.allowance = allowance


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
    peak = 0
    if device.type == "cuda":
        # Counts of penalties come with the first penalised job, two bytes for each row and token.
        peak = _profile(config, model, model_config, max_num_seqs, device) + 2 * max_num_seqs * model_config.vocab_size
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
    # What sampling may need on top: a copy of the rows that are penalised, up to all. Of float32 logits, too.
    logits.to(torch.float32, copy=True)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del logits, batch, scratch
    gc.collect()
    torch.cuda.empty_cache()
    return peak
