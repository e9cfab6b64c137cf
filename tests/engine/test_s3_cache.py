"""What one worker has computed, another finds in the bucket; what is there is checked, and the disk's cap holds."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from disk_parts import BLOCK, GREEDY, PROMPTS, SHARED, SYSTEM, ask, disk_config, ids, records, taken
from millrace_worker.engine import disk_tier, s3_tier
from millrace_worker.engine.disk_requests import TierLimits
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.prefix_cache import ROOT, block_hash
from millrace_worker.engine.s3_requests import S3Limits
from millrace_worker.frames import AddSequence
from s3_parts import Left, Objects, s3_config, s3_of, until
from servers import S3Server, set_credentials


@pytest.fixture
def objects(s3_env: S3Server) -> Objects:
    """An empty place in the bucket."""
    return Objects(s3_env.url, "kv/" + secrets.token_hex(4))


@pytest.fixture
def config(model: Path, objects: Objects, s3_env: S3Server) -> Any:
    return lambda directory, **settings: s3_config(model, directory, objects, s3_env.url, **settings)


def names() -> list[bytes]:
    """Of the blocks of SYSTEM."""
    found = [ROOT]
    for start in range(0, len(SYSTEM), BLOCK):
        found.append(block_hash(found[-1], SYSTEM[start : start + BLOCK]))
    return found[1:]


@pytest.fixture(scope="module")
def left(model: Path, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """The blocks of SYSTEM."""
    objects = Objects(s3_server.url, "kv/" + secrets.token_hex(4))
    with pytest.MonkeyPatch.context() as patch:
        set_credentials(patch)
        config = s3_config(model, tmp_path_factory.mktemp("left") / "first", objects, s3_server.url)
        left = Left.by(config, objects, PROMPTS)
    assert len(left.objects) == SHARED
    return left


@pytest.fixture
def shared(left: Left, objects: Objects, tmp_path: Path) -> Objects:
    """A place with the blocks of SYSTEM, which a worker has left there that is gone."""
    left.put(objects, tmp_path / "first")
    return objects


@pytest.mark.parametrize("cpu_cache_gb", [0.0, 0.01], ids=["disk", "cpu-and-disk"])
@pytest.mark.parametrize("overlap", [pytest.param(False, id="one"), pytest.param(True, id="two-in-flight")])
def test_another_worker_finds_it_and_answers_the_same(
    config: Any, shared: Objects, cold: list[list[int]], tmp_path: Path, overlap: bool, cpu_cache_gb: float
) -> None:
    engine = Engine(config(tmp_path / "second", cpu_cache_gb=cpu_cache_gb), overlap=overlap)
    assert engine.cache_stats.s3_blocks == SHARED
    assert ask(engine, PROMPTS) == cold
    stats = engine.cache_stats
    # For one they are fetched and read, the others find them in the pool.
    assert (stats.fetched_blocks, stats.loads) == (SHARED, {"s3": 1, "disk": 1})
    assert (stats.s3_hit_tokens, stats.disk_hit_tokens, stats.gpu_hit_tokens) == (40, 0, 160)
    assert len(records(tmp_path / "second")) == stats.disk_blocks == SHARED
    engine.close()
    # From now on they are on this disk, too.
    engine = Engine(config(tmp_path / "second"))
    assert ask(engine, PROMPTS) == cold
    assert (engine.cache_stats.s3_hit_tokens, engine.cache_stats.disk_hit_tokens) == (0, 40)
    engine.close()


def test_the_bucket_is_used_once_a_directory_in_use_is_free(
    model: Path, config: Any, shared: Objects, cold: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a new worker starts while the old one drains: it does not wait for the bucket then."""
    monkeypatch.setattr(disk_tier, "TierLimits", partial(TierLimits, lock_seconds=0.02))
    monkeypatch.setattr(s3_tier, "S3Limits", partial(S3Limits, start_seconds=600.0))
    in_use = Engine(disk_config(model, tmp_path / "second"))
    engine = Engine(config(tmp_path / "second"))
    assert engine.cache_stats.open == {"disk": 0, "s3": 0}
    in_use.close()
    until(lambda: engine.cache_stats.open == {"disk": 1, "s3": 1})
    assert ask(engine, PROMPTS) == cold
    assert engine.cache_stats.s3_hit_tokens == len(SYSTEM)
    engine.close()


def test_what_the_bucket_has_is_not_written_again(
    config: Any, shared: Objects, cold: list[list[int]], tmp_path: Path
) -> None:
    """Neither what the listing says, nor what another worker has written since then."""
    engine = Engine(config(tmp_path / "second"))
    s3_of(engine).tier._names._names.clear()  # as if it had been listed before the first worker wrote
    assert ask(engine, PROMPTS) == cold
    engine.close()
    stats = engine.cache_stats
    assert (stats.fetched_blocks, stats.stored_blocks, stats.present_blocks) == (0, 0, SHARED)
    assert stats.s3_misses["absent"] > 0


def test_new_records_of_others_are_found_by_and_by(
    config: Any, objects: Objects, cold: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_tier, "S3Limits", partial(S3Limits, list_seconds=0.2, seconds_a_page=0.0))
    waiting = Engine(config(tmp_path / "second"))
    assert waiting.cache_stats.s3_blocks == 0
    first = Engine(config(tmp_path / "first"))
    ask(first, PROMPTS)
    until(lambda: waiting.cache_stats.s3_blocks == SHARED)
    # And those that somebody deletes are not asked for.
    for key in objects.listed():
        objects.remove(key)
    until(lambda: waiting.cache_stats.s3_blocks == 0)
    for engine in (first, waiting):
        engine.close()


@pytest.mark.parametrize(
    ("byte", "reason"),
    [(2, "format"), (50, "header_checksum"), (125, "header_checksum"), (-9, "payload_checksum")],
    ids=["magic", "chain-hash", "token-ids", "payload"],
)
def test_after_a_flipped_bit_in_an_object_the_good_head_is_used_and_the_object_is_replaced(
    config: Any, shared: Objects, cold: list[list[int]], tmp_path: Path, byte: int, reason: str
) -> None:
    key = shared.key(names()[6])
    good = bytearray(shared.read(key))
    bad = bytearray(good)
    bad[byte] ^= 4
    shared.write(key, bytes(bad))
    engine = Engine(config(tmp_path / "second"))
    assert ask(engine, PROMPTS[:1]) == cold[:1]
    stats = engine.cache_stats
    assert (stats.misses, stats.spoilt_blocks) == ({reason: 1}, 1)
    assert stats.s3_hit_tokens == 6 * BLOCK
    until(lambda: key not in shared.listed())
    # It is computed, written to the disk once it is seen again, and then stored.
    assert ask(engine, PROMPTS) == cold
    engine.close()
    assert engine.cache_stats.loads["s3"] == 1
    assert shared.read(key) == good


def test_an_object_of_another_length_counts_as_none(
    config: Any, shared: Objects, cold: list[list[int]], tmp_path: Path
) -> None:
    known, unknown = (shared.key(names()[number]) for number in (3, 5))
    good = shared.read(known)
    shared.write(unknown, good[:100])
    engine = Engine(config(tmp_path / "second"))
    assert engine.cache_stats.s3_blocks == SHARED - 1
    shared.write(known, good + b"x")  # after the listing
    assert ask(engine, PROMPTS[:1]) == cold[:1]
    stats = engine.cache_stats
    assert (stats.s3_misses, stats.s3_hit_tokens) == ({"length": 1}, 3 * BLOCK)
    assert ask(engine, PROMPTS) == cold
    engine.close()
    assert shared.read(known) == good
    assert len(shared.read(unknown)) == len(good)


def test_a_whole_record_in_the_place_of_another_is_found(
    config: Any, shared: Objects, cold: list[list[int]], tmp_path: Path
) -> None:
    shared.write(shared.key(names()[0]), shared.read(shared.key(names()[3])))
    engine = Engine(config(tmp_path / "second"))
    assert ask(engine, PROMPTS[:1]) == cold[:1]
    assert engine.cache_stats.misses == {"chain_hash": 1}
    assert engine.cache_stats.s3_hit_tokens == 0
    engine.close()


def test_another_fingerprint_finds_nothing(model: Path, shared: Objects, s3_env: S3Server, tmp_path: Path) -> None:
    """Nor do records pass for those of another that lie in their place."""
    other = shutil.copytree(model, tmp_path / "other")
    file = other / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_theta": 5000.0, "rope_parameters": None}))
    wanted = ask(Engine(disk_config(other, None, enable_prefix_caching=False)), PROMPTS)
    engine = Engine(s3_config(other, tmp_path / "second", shared, s3_env.url))
    assert engine.cache_stats.s3_blocks == 0
    assert ask(engine, PROMPTS) == wanted
    assert engine.cache_stats.s3_hit_tokens == 0
    engine.close()
    namespaces = {key.split("/")[-2] for key in shared.listed()}
    (own,) = (name.name for name in (tmp_path / "second").iterdir() if name.name in namespaces)
    for key in [key for key in shared.listed() if own not in key]:
        shared.write(f"{shared.prefix}/{own}/{key.split('/')[-1]}", shared.read(key))
    engine = Engine(s3_config(other, tmp_path / "third", shared, s3_env.url))
    assert ask(engine, PROMPTS[:1]) == wanted[:1]
    stats = engine.cache_stats
    assert (stats.fetched_blocks, stats.misses, stats.s3_hit_tokens) == (SHARED, {"fingerprint": 1}, 0)
    engine.close()


def test_what_is_slower_to_fetch_than_to_compute_is_computed(
    config: Any, shared: Objects, cold: list[list[int]], tmp_path: Path
) -> None:
    engine = Engine(config(tmp_path / "second"))
    costs = engine.scheduler.tier.costs  # type: ignore[attr-defined]
    costs.bytes_per_second["s3"], costs.tokens_per_second = 1000.0, 1000.0
    assert ask(engine, PROMPTS) == cold
    stats = engine.cache_stats
    assert (stats.loads, stats.recomputes, stats.s3_hit_tokens) == ({}, {"s3": 1}, 0)
    assert stats.s3_misses["slower"] == 1
    engine.close()


def test_a_sequence_that_is_given_up_while_it_is_fetched_leaves_nothing(
    config: Any, shared: Objects, cold: list[list[int]], tmp_path: Path
) -> None:
    engine = Engine(config(tmp_path / "second"))
    engine.add(AddSequence(9, PROMPTS[0], [], GREEDY))
    engine.scheduler.schedule()
    assert s3_of(engine).is_busy
    engine.abort(9)
    assert not engine.has_work
    assert ask(engine, PROMPTS) == cold
    engine.close()
    assert engine.cache_stats.disk_bytes == taken(tmp_path / "second") > 0
    assert not list(tmp_path.rglob("*.tmp*"))


def test_what_was_asked_for_a_moment_ago_takes_its_room(
    model: Path, config: Any, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may ask for many prompts before the tier's thread hears of the first."""
    many = [ids(60 + n, 50 + n) for n in range(12)]
    first = Engine(config(tmp_path / "first", blocks=1000))
    for _ in range(2):
        ask(first, many)
    until(lambda: first.cache_stats.stored_blocks == first.cache_stats.written_blocks > 100)
    first.close()
    engine = Engine(config(tmp_path / "second", blocks=1000))
    tier = s3_of(engine).tier
    monkeypatch.setattr(tier, "limits", S3Limits(most_fetched_bytes=20 * tier.file_bytes))
    monkeypatch.setattr(tier._mover, "_ask", lambda request: None)
    for number, prompt in enumerate(many):
        engine.add(AddSequence(number, prompt, [], GREEDY))
    engine.scheduler.schedule()
    assert sum(len(fetch.fetching.names) for fetch in s3_of(engine)._fetches) == 20
    monkeypatch.undo()
    engine.close()


def test_the_disks_cap_holds_while_records_are_fetched(
    model: Path, config: Any, objects: Objects, tmp_path: Path
) -> None:
    many = [ids(60 + n, 50 + n) for n in range(12)]
    first = Engine(config(tmp_path / "first", blocks=1000))
    for _ in range(2):
        ask(first, many)
    until(lambda: first.cache_stats.stored_blocks == first.cache_stats.written_blocks > 100)
    first.close()
    size, cap = first.cache_stats.disk_bytes // first.cache_stats.disk_blocks, 40
    engine = Engine(config(tmp_path / "second", blocks=1000, disk_cache_gb=cap * size / 1e9))
    most, ended = [0], threading.Event()

    def files() -> dict[Path, int]:
        return {
            path: path.stat().st_blocks * 512 for path in (tmp_path / "second").rglob("*.*") if ".json" not in path.name
        }

    def watch() -> None:
        while not ended.is_set():
            # One that is deleted while another is written must not be counted beside it.
            with suppress(FileNotFoundError):
                before = files()
                if before == files():
                    most[0] = max(most[0], sum(before.values()))

    thread = threading.Thread(target=watch)
    thread.start()
    wanted = ask(Engine(disk_config(model, None, blocks=1000)), many)
    assert [ask(engine, [prompt])[0] for prompt in many] == wanted
    # And all at once, which do not fit together.
    engine.reset_prefix_cache()
    assert ask(engine, many) == wanted
    engine.close()
    ended.set()
    thread.join()
    stats = engine.cache_stats
    assert stats.fetched_blocks > cap
    assert stats.s3_misses["cap"] > 0
    assert 0 < taken(tmp_path / "second") <= most[0] <= cap * size
    assert stats.disk_bytes == taken(tmp_path / "second")
