"""A disk cache for an engine as it is configured."""

from __future__ import annotations

from pathlib import Path

import structlog
import torch

from millrace_worker.config import EngineConfig
from millrace_worker.models.config import ModelConfig
from millrace_worker.models.weights import shapes, slots

from .block_copies import BlockCopies
from .block_pool import BlockPool
from .disk_cache import DiskCache
from .disk_tier import DiskTier
from .fingerprint import KV_KERNEL_VERSION, Identity, config_digest, dummy_digest, weights_digest
from .kv_cache import KV_LAYOUT_VERSION
from .kv_record import file_bytes
from .s3_cache import S3Cache
from .s3_tier import S3Tier

log = structlog.get_logger()


def open_disk_cache(
    config: EngineConfig,
    model_directory: Path,
    model: ModelConfig,
    dtype: torch.dtype,
    kv_cache: torch.Tensor,
    pool: BlockPool,
) -> DiskCache | None:
    """None when none is configured. `dtype` is that of the computation."""
    if config.disk_cache_dir is None:
        return None
    if not config.enable_prefix_caching:
        log.warning("no disk cache", reason="enable_prefix_caching is off")
        return None
    directory = Path(config.disk_cache_dir).expanduser()
    copies = BlockCopies(kv_cache)
    tier = DiskTier(
        directory,
        int(config.disk_cache_gb * 10**9),
        block_size=config.block_size,
        block_bytes=copies.block_bytes,
        new_buffer=copies.new_buffer,
    )
    tier.start(lambda: identify(config, model_directory, model, dtype, kv_cache))
    s3 = None if config.s3_cache is None else _open_s3_cache(config, config.s3_cache, tier, copies, pool)
    return DiskCache(tier, pool, copies, block_size=config.block_size, s3=s3)


def _open_s3_cache(config: EngineConfig, url: str, disk: DiskTier, copies: BlockCopies, pool: BlockPool) -> S3Cache:
    length = file_bytes(config.block_size, copies.block_bytes)
    tier = S3Tier(url, config.s3_endpoint_url, disk, file_bytes=length)
    tier.start()
    return S3Cache(tier, disk, pool, block_size=config.block_size, is_here=disk.has)


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
