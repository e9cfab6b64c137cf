"""A bucket as the tests see it, engines that share it, and what their couriers are doing."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from disk_parts import ask, disk_config
from millrace_worker.config import EngineConfig
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.s3_cache import S3Cache
from servers import ACCESS_KEY, SECRET_KEY

BUCKET = "answers"


class Objects:
    """Those of one prefix of a bucket."""

    def __init__(self, url: str, prefix: str) -> None:
        self.prefix = prefix
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    @property
    def place(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    def listed(self) -> list[str]:
        """Keys."""
        found = self._client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self.prefix}/")
        return sorted(entry["Key"] for entry in found.get("Contents", ()))

    def key(self, name: bytes) -> str:
        """That of the record of this name."""
        (key,) = (key for key in self.listed() if name.hex() in key)
        return key

    def read(self, key: str) -> bytes:
        data: bytes = self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return data

    def write(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def remove(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)


@dataclass(frozen=True)
class Left:
    """What a worker has left that is gone: its objects, by their keys behind the prefix, and its directory."""

    objects: dict[str, bytes]
    directory: Path

    @classmethod
    def by(cls, config: EngineConfig, objects: Objects, *batches: list[list[int]]) -> Left:
        """By a worker that was asked for these."""
        engine = Engine(config)
        for prompts in batches:
            ask(engine, prompts)
        engine.close()
        keys = objects.listed()
        assert engine.cache_stats.stored_blocks == len(keys)
        assert config.disk_cache_dir is not None
        found = {key.removeprefix(objects.prefix): objects.read(key) for key in keys}
        return cls(found, Path(config.disk_cache_dir))

    def put(self, objects: Objects, directory: Path) -> None:
        """Leaves the same in another place and another directory."""
        for name, data in self.objects.items():
            objects.write(objects.prefix + name, data)
        shutil.copytree(self.directory, directory)


def s3_config(model: Path, directory: Path, objects: Objects, url: str, **settings: Any) -> EngineConfig:
    return disk_config(model, directory, s3_cache=objects.place, s3_endpoint_url=url, **settings)


def s3_of(engine: Engine) -> S3Cache:
    half = engine.scheduler.tier.s3  # type: ignore[attr-defined]
    assert isinstance(half, S3Cache)
    return half


def courier_of(engine: Engine) -> int:
    pid = s3_of(engine).tier.courier_pid
    assert pid is not None
    return pid


def is_alive(pid: int) -> bool:
    """Whether it is there and no corpse."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], object], seconds: float = 20.0, say: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, say()
        time.sleep(0.01)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
