"""An engine process that is killed takes its courier along, and leaves what the next one uses."""

from __future__ import annotations

import secrets
from pathlib import Path

from disk_parts import BLOCK, ask, disk_config, ids, records
from engine_process import EngineProcess
from faulty_s3 import FaultyS3
from greedy import save
from millrace_worker.engine.engine import Engine
from s3_parts import Objects, is_alive, s3_config, until
from servers import S3Server

#: Prompts without a common beginning.
MANY = [ids(60 + n, 50 + n) for n in range(6)]


def children(pid: int) -> list[int]:
    """Of all threads of a process."""
    found = (path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for line in found for child in line]


def test_the_courier_ends_with_an_engine_that_is_killed(s3_env: S3Server, tmp_path: Path) -> None:
    model, objects = save("llama3-untied", tmp_path), Objects(s3_env.url, "kv/" + secrets.token_hex(4))
    wanted = ask(Engine(disk_config(model, None, blocks=1000, enable_prefix_caching=False)), MANY)
    all_blocks = sum((len(prompt) - 1) // BLOCK for prompt in MANY)
    with FaultyS3(s3_env.port) as proxy:
        engine = EngineProcess(s3_config(model, tmp_path / "first", objects, proxy.url, blocks=1000))
        (courier,) = children(engine.process.pid)
        for _ in range(2):
            assert engine.ask(MANY) == wanted
        until(lambda: len(objects.listed()) >= all_blocks)
        engine.kill()
        until(lambda: not is_alive(courier))
        # And in the middle of fetches.
        proxy.fail("GET", ".kv", "hold")
        config = s3_config(model, tmp_path / "second", objects, proxy.url, blocks=1000)
        engine = EngineProcess(config)
        (courier,) = children(engine.process.pid)
        engine.ask(MANY[:1], until=lambda: any(method == "GET" and ".kv" in path for method, path in proxy.requests))
        engine.kill()
        until(lambda: not is_alive(courier))
        proxy.heal()
        assert records(tmp_path / "second") == []
        again = Engine(config)
        assert ask(again, MANY) == wanted
        assert again.cache_stats.s3_hit_tokens > 0
        again.close()
    assert not list(tmp_path.rglob("*.tmp*"))
