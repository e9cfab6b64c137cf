"""A bucket that refuses, hangs or is gone costs a recomputation, never a step, an answer, a start or a stop."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from disk_parts import BLOCK, GREEDY, PROMPTS, SHARED, ask, ids, race, records, taken
from faulty_s3 import FaultyS3
from millrace_worker.config import EngineConfig
from millrace_worker.engine import s3_tier
from millrace_worker.engine.engine import Engine
from millrace_worker.engine.s3_requests import S3Limits
from millrace_worker.frames import AddSequence
from s3_parts import BUCKET, Left, Objects, courier_of, is_alive, kill, s3_config, s3_of, until
from servers import S3Server, set_credentials

#: A prompt that is in the bucket, too.
SECOND = ids(60, 50)
#: One that is not.
OTHER = ids(60, 51)
#: Records in the bucket.
ALL = SHARED + (len(SECOND) - 1) // BLOCK
#: Seconds that an engine may take to close, whatever its bucket does; its front waits for ten.
CLOSING = 8.0

Configure = Callable[..., EngineConfig]


@pytest.fixture
def server(s3_env: S3Server, tmp_path: Path) -> Iterator[S3Server]:
    """One that may be stopped and killed."""
    (tmp_path / "s3" / "root" / BUCKET).mkdir(parents=True)
    server = S3Server(tmp_path / "s3" / "root")
    server.start()
    yield server
    os.kill(server.pid, signal.SIGCONT)
    server.stop()


@pytest.fixture
def faulty(server: S3Server) -> Iterator[FaultyS3]:
    with FaultyS3(server.port) as proxy:
        yield proxy


@pytest.fixture
def objects(server: S3Server) -> Objects:
    return Objects(server.url, "kv")


@pytest.fixture
def config(model: Path, tmp_path: Path, objects: Objects, faulty: FaultyS3) -> Configure:
    """Of a worker with this directory; requests go through the proxy."""

    def configure(directory: str = "second", **settings: Any) -> EngineConfig:
        return s3_config(model, tmp_path / directory, objects, faulty.url, **settings)

    return configure


@pytest.fixture(scope="module")
def left(model: Path, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """Of a worker that was asked for PROMPTS, and for SECOND twice."""
    objects = Objects(s3_server.url, "kv/" + secrets.token_hex(4))
    with pytest.MonkeyPatch.context() as patch:
        set_credentials(patch)
        config = s3_config(model, tmp_path_factory.mktemp("left") / "first", objects, s3_server.url)
        left = Left.by(config, objects, PROMPTS, [SECOND], [SECOND])
    assert len(left.objects) == ALL
    return left


@pytest.fixture
def shared(left: Left, objects: Objects, tmp_path: Path) -> Objects:
    left.put(objects, tmp_path / "first")
    return objects


def hurry(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    monkeypatch.setattr(s3_tier, "S3Limits", partial(S3Limits, **limits))


def close(engine: Engine, tmp_path: Path) -> None:
    """In time, with nothing left behind."""
    pid, began = courier_of(engine), time.monotonic()
    engine.close()
    assert time.monotonic() - began < CLOSING
    assert not is_alive(pid)
    assert not list(tmp_path.rglob("*.tmp*"))


def fetches_again(engine: Engine) -> None:
    """What was not needed so far is fetched once what hindered it is over."""
    until(lambda: s3_of(engine).tier.may_fetch)
    before = engine.cache_stats.s3_hit_tokens
    ask(engine, [SECOND])
    assert engine.cache_stats.s3_hit_tokens - before == (len(SECOND) - 1) // BLOCK * BLOCK


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("NoSuchBucket", "no_bucket"), ("AccessDenied", "denied"), ("SlowDown", "busy"), ("reset", "unreachable")],
)
def test_a_bucket_that_cannot_be_listed_is_none_until_it_can(
    config: Configure, shared: Objects, faulty: FaultyS3, cold: list[list[int]], kind: str, reason: str, tmp_path: Path
) -> None:
    faulty.fail("GET", "list-type", kind)
    engine = Engine(config())
    assert ask(engine, PROMPTS) == cold
    stats = engine.cache_stats
    assert stats.s3_failures[f"list_{reason}"] >= 1
    assert (stats.s3_misses, stats.s3_blocks) == ({"not_listed": 5}, 0)
    assert stats.open == {"disk": 1, "s3": 0}
    faulty.heal()
    until(lambda: engine.cache_stats.s3_blocks == ALL)
    until(lambda: engine.cache_stats.open["s3"] == 1)
    close(engine, tmp_path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("AccessDenied", "denied"), ("InternalError", "error"), ("reset", "unreachable"), ("truncate", "unreachable")],
)
def test_a_record_that_is_refused_is_computed_and_others_are_not_asked_for_for_a_while(
    config: Configure,
    shared: Objects,
    faulty: FaultyS3,
    cold: list[list[int]],
    kind: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurry(monkeypatch, pause=2.0)
    engine = Engine(config())
    fault = faulty.fail("GET", ".kv", kind)
    assert ask(engine, PROMPTS[:1]) == cold[:1]
    stats = engine.cache_stats
    assert (stats.s3_misses[reason], stats.s3_hit_tokens) == (1, 0)
    assert stats.s3_failures[f"fetch_{reason}"] >= 1
    met = fault.met
    engine.reset_prefix_cache()
    assert ask(engine, PROMPTS[1:2]) == cold[1:2]
    assert (engine.cache_stats.s3_misses["paused"], fault.met) == (1, met)
    faulty.heal()
    fetches_again(engine)
    assert taken(tmp_path / "second") == engine.cache_stats.disk_bytes
    close(engine, tmp_path)


def test_the_head_that_came_is_kept_when_a_record_is_gone(
    config: Configure, shared: Objects, cold: list[list[int]], tmp_path: Path
) -> None:
    engine = Engine(config())
    gone = [key for key in shared.listed() if records(tmp_path / "first")[3].name in key]
    shared.remove(gone[0])
    assert ask(engine, PROMPTS[:1]) == cold[:1]
    stats = engine.cache_stats
    assert stats.s3_misses == {"gone": 1}
    assert stats.s3_failures == {}
    assert stats.s3_blocks == ALL - 1
    close(engine, tmp_path)


def test_a_server_that_is_killed_and_comes_back(
    config: Configure,
    shared: Objects,
    server: S3Server,
    cold: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurry(monkeypatch, pause=0.3)
    engine = Engine(s3_config(*config_parts(config), shared, server.url))
    kill(server.pid)
    assert ask(engine, PROMPTS) == cold
    stats = engine.cache_stats
    assert stats.s3_failures["fetch_unreachable"] >= 1
    assert stats.s3_hit_tokens == 0
    server.stop()
    server.start()
    fetches_again(engine)
    close(engine, tmp_path)


def config_parts(config: Configure) -> tuple[Path, Path]:
    made = config()
    assert made.disk_cache_dir is not None
    return Path(made.model), Path(made.disk_cache_dir)


def test_a_server_that_hangs_is_given_up_and_others_go_on_meanwhile(
    config: Configure,
    shared: Objects,
    server: S3Server,
    cold: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The courier itself would wait for much longer.
    hurry(monkeypatch, fetch_seconds=1.0, request_seconds=240.0, pause=0.5)
    engine = Engine(config())
    os.kill(server.pid, signal.SIGSTOP)
    ended, answers = race(engine, [PROMPTS[0], OTHER])
    assert ended == [1, 0]
    assert answers[0] == cold[0]
    stats = engine.cache_stats
    assert stats.s3_misses["deadline"] == 1
    assert stats.s3_failures["fetch_deadline"] >= 1
    os.kill(server.pid, signal.SIGCONT)
    fetches_again(engine)
    close(engine, tmp_path)


def test_several_that_waited_in_vain_are_logged_once(
    config: Configure, shared: Objects, server: S3Server, tmp_path: Path
) -> None:
    with capture_logs() as logged:
        engine = Engine(config())
        os.kill(server.pid, signal.SIGSTOP)
        tier = s3_of(engine).tier
        late = [tier.fetch([bytes([n]) * 32], [bytes([n]) * 32]) for n in range(3)]
        for fetching in late:
            tier.give_up(fetching)
        until(lambda: tier.failures.get("fetch_deadline") == 3)
        os.kill(server.pid, signal.SIGCONT)
        close(engine, tmp_path)
    (opened,) = (line for line in logged if line["event"] == "S3 cache open")
    assert opened["blocks"] == ALL
    (failed,) = (line for line in logged if line["event"] == "the bucket of the prefix cache failed")
    assert (failed["request"], failed["why"]) == ("fetch", "deadline")
    assert failed["pause"] == tier.limits.pause


def test_an_engine_starts_and_closes_beside_a_server_that_hangs(
    config: Configure,
    shared: Objects,
    server: S3Server,
    cold: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurry(monkeypatch, start_seconds=0.2)
    os.kill(server.pid, signal.SIGSTOP)
    engine = Engine(config())
    assert ask(engine, PROMPTS) == cold
    assert engine.cache_stats.s3_misses == {"not_listed": 5} or "closed" in engine.cache_stats.s3_misses
    close(engine, tmp_path)


def test_an_engine_closes_in_the_middle_of_fetches_and_stores(
    config: Configure, shared: Objects, faulty: FaultyS3, cold: list[list[int]], tmp_path: Path
) -> None:
    engine = Engine(config())
    faulty.fail("GET", ".kv", "hold")
    faulty.fail("PUT", ".kv", "hold")
    for _ in range(2):
        ask(engine, [OTHER])
    engine.add(AddSequence(0, PROMPTS[0], [], GREEDY))
    engine.step()
    until(lambda: any(method == "GET" and ".kv" in path for method, path in faulty.requests))
    close(engine, tmp_path)
    assert taken(tmp_path / "second") == engine.cache_stats.disk_bytes


def test_what_could_not_be_stored_is_stored_later(
    config: Configure, objects: Objects, faulty: FaultyS3, cold: list[list[int]], tmp_path: Path, monkeypatch: Any
) -> None:
    hurry(monkeypatch, pause=0.2)
    faulty.fail("PUT", ".kv", "AccessDenied")
    engine = Engine(config())
    assert ask(engine, PROMPTS) == cold
    until(lambda: engine.cache_stats.s3_failures.get("store_denied", 0) > 0)
    assert objects.listed() == []
    # That nothing may be written hinders no reading.
    assert engine.cache_stats.s3_failures.keys() == {"store_denied"}
    faulty.heal()
    until(lambda: len(objects.listed()) == SHARED)
    close(engine, tmp_path)


def test_a_bad_object_that_may_not_be_deleted_is_written_over(
    config: Configure, shared: Objects, faulty: FaultyS3, cold: list[list[int]], tmp_path: Path
) -> None:
    key = next(key for key in shared.listed() if records(tmp_path / "first")[0].name in key)
    good = shared.read(key)
    shared.write(key, good[:-1] + bytes([good[-1] ^ 1]))
    faulty.fail("DELETE", ".kv", "AccessDenied")
    engine = Engine(config())
    for _ in range(2):
        assert ask(engine, PROMPTS) == cold
        ask(engine, [SECOND])
        engine.reset_prefix_cache()
    until(lambda: shared.read(key) == good)
    stats = engine.cache_stats
    assert (stats.misses["payload_checksum"], stats.spoilt_blocks) == (1, 1)
    assert stats.s3_failures == {"remove_denied": 1}
    close(engine, tmp_path)


def test_a_courier_that_is_killed_is_started_again_and_nothing_is_lost(
    config: Configure,
    shared: Objects,
    faulty: FaultyS3,
    cold: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurry(monkeypatch, pause=0.2, restart=0.1)
    engine = Engine(config())
    faulty.fail("PUT", ".kv", "hold")
    for _ in range(2):
        ask(engine, [OTHER])
    faulty.fail("GET", ".kv", "hold")
    engine.add(AddSequence(0, PROMPTS[0], [], GREEDY))
    engine.step()
    for wanted in ("GET", "PUT"):
        until(lambda wanted=wanted: any(method == wanted and ".kv" in path for method, path in faulty.requests))
    first = courier_of(engine)
    kill(first)
    answer: list[int] = []
    while engine.has_work:
        answer += [token for _, tokens in engine.step().tokens for token in tokens]
    assert answer == cold[0]
    stats = engine.cache_stats
    assert (stats.s3_failures["courier_died"], stats.s3_misses["courier_died"]) == (1, 1)
    assert taken(tmp_path / "second") == stats.disk_bytes
    faulty.heal()
    until(lambda: len(shared.listed()) == ALL + (len(OTHER) - 1) // BLOCK)
    assert courier_of(engine) != first
    fetches_again(engine)
    close(engine, tmp_path)


def test_a_courier_that_stands_still_is_replaced(
    config: Configure, shared: Objects, cold: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, fetch_seconds=0.5, silent_seconds=1.0, pause=0.2, restart=0.1)
    engine = Engine(config())
    first = courier_of(engine)
    os.kill(first, signal.SIGSTOP)
    assert ask(engine, PROMPTS[:1]) == cold[:1]
    until(lambda: engine.cache_stats.s3_failures.get("courier_silent", 0) == 1)
    # What is asked of the old one until it is gone is lost with it.
    until(lambda: s3_of(engine).tier.courier_pid not in (None, first))
    fetches_again(engine)
    assert not is_alive(first)
    close(engine, tmp_path)


def test_where_no_courier_can_work_there_is_no_bucket(
    model: Path, objects: Objects, cold: list[list[int]], tmp_path: Path
) -> None:
    engine = Engine(s3_config(model, tmp_path / "second", objects, "no address"))
    assert ask(engine, PROMPTS) == cold
    stats = engine.cache_stats
    assert (stats.s3_failures, stats.s3_misses) == ({"courier_died": 1}, {"not_listed": 5})
    time.sleep(1.5)
    assert engine.cache_stats.s3_failures == {"courier_died": 1}
    engine.close()
