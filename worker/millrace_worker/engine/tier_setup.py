"""The tiers below the block pool, for an engine as it is configured."""

from __future__ import annotations

from pathlib import Path

import structlog
import torch

from millrace_worker.config import EngineConfig
from millrace_worker.errors import ConfigError
from millrace_worker.models.config import ModelConfig
from millrace_worker.models.weights import shapes, slots

from .block_copies import BlockCopies
from .block_pool import BlockPool
from .disk_tier import DiskTier
from .fingerprint import KV_KERNEL_VERSION, Identity, config_digest, dummy_digest, weights_digest
from .host_arena import HostArena, pin_for
from .host_tier import HostTier
from .kv_cache import KV_LAYOUT_VERSION
from .kv_record import file_bytes, record_bytes
from .load_costs import LoadCosts
from .s3_cache import S3Cache
from .s3_tier import S3Tier
from .tiered_cache import TieredCache

log = structlog.get_logger()


def open_tiers(
    config: EngineConfig,
    model_directory: Path,
    model: ModelConfig,
    dtype: torch.dtype,
    kv_cache: torch.Tensor,
    pool: BlockPool,
) -> TieredCache | None:
    """None when none is configured. `dtype` is that of the computation. Not while CUDA graphs are captured.

    Raises ConfigError when a tier is too small for one block.
    """
    if config.cpu_cache_gb == 0 and config.disk_cache_dir is None:
        return None
    if not config.enable_prefix_caching:
        log.warning("no CPU or disk cache", reason="enable_prefix_caching is off")
        return None
    copies = BlockCopies(kv_cache)
    host = None
    if config.cpu_cache_gb > 0:
        _check_room("--cpu-cache-gb", config.cpu_cache_gb, copies.block_bytes)
        arena = HostArena(int(config.cpu_cache_gb * 10**9), copies.block_bytes, pin=pin_for(kv_cache.device))
        host = HostTier(arena)
        host.start()
    disk = None
    if config.disk_cache_dir is not None:
        _check_room("--disk-cache-gb", config.disk_cache_gb, record_bytes(config.block_size, copies.block_bytes))
        disk = DiskTier(
            Path(config.disk_cache_dir).expanduser(),
            int(config.disk_cache_gb * 10**9),
            block_size=config.block_size,
            block_bytes=copies.block_bytes,
            new_buffer=copies.new_buffer,
        )
        disk.start(lambda: identify(config, model_directory, model, dtype, kv_cache))
    costs = LoadCosts()
    s3 = None
    if disk is not None and config.s3_cache is not None:
        length = file_bytes(config.block_size, copies.block_bytes)
        tier = S3Tier(config.s3_cache, config.s3_endpoint_url, disk, file_bytes=length)
        tier.start()
        s3 = S3Cache(tier, disk, costs, block_size=config.block_size, host=host)
    return TieredCache(pool, copies, costs, block_size=config.block_size, host=host, disk=disk, s3=s3)


def _check_room(flag: str, size_gb: float, block_bytes: int) -> None:
    if size_gb * 10**9 < block_bytes:
        raise ConfigError(f"{flag}={size_gb:g} holds no block of this model's KV, which takes {block_bytes / 1e9:g} GB")


def identify(
    config: EngineConfig, model_directory: Path, model: ModelConfig, dtype: torch.dtype, kv_cache: torch.Tensor
) -> Identity:
    """Whose KV an engine makes. Reads all weights once. Raises NoFingerprint."""
    device = kv_cache.device.type
    if config.load_format == "dummy":
        sizes = {name: tuple(shape) for name, shape in shapes(slots(model)).items()}
        weights = dummy_digest(sizes, config.seed, device)
    else:
        assert config.disk_cache_dir is not None
        weights = weights_digest(model_directory, Path(config.disk_cache_dir).expanduser() / "weights")
    return Identity(
        weights=weights,
        config=config_digest(model_directory),
        dtype=str(dtype).removeprefix("torch."),
        kv_dtype=str(kv_cache.dtype).removeprefix("torch."),
        layout_version=KV_LAYOUT_VERSION,
        kernels=f"{device} {KV_KERNEL_VERSION}",
        block_size=config.block_size,
    )
