"""An engine process that is killed while it writes leaves a cache that the next one uses."""

from __future__ import annotations

import time
from pathlib import Path

from disk_parts import BLOCK, ask, disk_config, ids, records
from engine_process import EngineProcess
from greedy import save
from millrace_worker.engine.engine import Engine

#: Prompts without a common beginning.
MANY = [ids(60 + n, 50 + n) for n in range(40)]


def test_after_a_kill_in_the_middle_of_writing_what_is_there_is_used(tmp_path: Path) -> None:
    model, directory = save("llama3-untied", tmp_path), tmp_path / "cache"
    config = disk_config(model, directory, blocks=1000)
    wanted = ask(Engine(disk_config(model, None, enable_prefix_caching=False)), MANY)
    engine = EngineProcess(config)
    assert engine.ask(MANY) == wanted
    engine.ask(MANY, until=lambda: len(records(directory)) > 0)
    while len(records(directory)) < 5:
        time.sleep(0.001)
    engine.kill()
    written = len(records(directory))
    all_blocks = sum((len(prompt) - 1) // BLOCK for prompt in MANY)
    assert written < all_blocks, "it was through before it was killed"
    again = Engine(config)
    assert again.cache_stats.disk_blocks == written
    assert ask(again, MANY) == wanted
    assert again.cache_stats.disk_hit_tokens > 0
    again.close()
    assert not list(directory.rglob("*.tmp*"))
