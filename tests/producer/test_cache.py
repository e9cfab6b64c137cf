"""`millrace cache` against whole workers, whose engines are fakes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from millrace import Client, WorkerInfo, cache_warming, cli
from millrace.pins import PinView
from millrace.prefix_file import read_prefixes
from millrace_schemas import HeldPin, InvalidRequest, Pin, QueueKeys, WorkerCache, encode, pin_id
from queue_probe import QueueProbe
from worker_process import WorkerProcess


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `millrace cache ...` in this process."""
    monkeypatch.setenv("MILLRACE_REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["millrace", "cache", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return Ended(0 if code is None else int(code), out, err)

    return call


@pytest.fixture
def probe(redis_url: str) -> QueueProbe:
    return QueueProbe(redis_url)


@pytest.fixture
def workers(redis_url: str, tmp_path: Path) -> Iterator[list[WorkerProcess]]:
    first = WorkerProcess(redis_url, tmp_path).start(wait=False)
    with first, WorkerProcess(redis_url, tmp_path) as second:
        yield [first, second]


def lines(path: Path, *entries: dict[str, Any]) -> str:
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n")
    return str(path)


def test_warm_list_and_evict(
    workers: list[WorkerProcess], run: Run, redis_url: str, probe: QueueProbe, tmp_path: Path
) -> None:
    file = lines(
        tmp_path / "p.jsonl", {"system": "s" * 40}, {"system": "s" * 40, "cache_salt": "x", "cache_ttl": 90},
        {"messages": [{"role": "system", "content": "t" * 32}]}, {"prompt": "u" * 20}, {"prompt_token_ids": [7] * 16},
    )  # fmt: skip
    found = run("warm", file, "--ttl", "600", "--json")
    assert (found.code, found.err) == (0, "")
    warmed = json.loads(found.out)
    assert [it["where"] for it in warmed] == [f"line {n}" for n in range(1, 6)]
    assert [it["pin"]["tokens"] for it in warmed] == [40, 40, 32, 20, 16]
    assert [it["pin"]["ttl"] for it in warmed] == [600, 90, 600, 600, 600]
    for it in warmed:
        held = it["pin"]["workers"].values()
        assert [worker["tier"] for worker in held] == ["gpu", "gpu"]
        assert it["problem"] == ""
    with Client(redis_url, model=probe.model) as client:
        result = client.submit(system="s" * 40, prompt="hello", sampling={"max_tokens": 2}).result(timeout=30)
        assert result.usage.cached_tokens == 32
    text = run("list").out
    ids = [it["pin"]["id"] for it in warmed]
    for name in ids:
        assert name[:16] in text
    assert "gpu on 2" in text
    assert "tenant" not in text
    assert run("evict", ids[0][:16], ids[3]).out.split() == [ids[0], ids[3]]
    assert {pin["id"] for pin in json.loads(run("list", "--json").out)} == set(ids) - {ids[0], ids[3]}
    found = run("evict", ids[0])
    assert (found.code, found.out) == (1, "")
    assert f"model letters has no pin '{ids[0]}'" in found.err
    assert "begin with 'pin_'; give more of the id" in run("evict", "pin_").err
    assert set(run("evict", "--all").out.split()) == set(ids) - {ids[0], ids[3]}
    assert json.loads(run("list", "--json").out) == []
    with Client(redis_url, model=probe.model) as client:
        limit = time.monotonic() + 20
        while client.submit(system="s" * 40, prompt="hello", sampling={"max_tokens": 2}).result(30).usage.cached_tokens:
            assert time.monotonic() < limit, "the engines were never told"
    for wrong in ((), ("--all", ids[0])):
        assert run("evict", *wrong).code == 2


def test_a_text_is_a_system_prompt_and_a_tenant_has_its_own(
    workers: list[WorkerProcess], run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "system.txt"
    file.write_text("\ufeffbe brief, and never say why\n")
    for tenant in ("", "acme"):
        (it,) = json.loads(run("warm", str(file), "--json", "--tenant", tenant).out)
        assert (it["pin"]["tenant"], it["pin"]["tokens"], it["pin"]["ttl"]) == (tenant, 27, 3600)
    out = run("list").out
    assert "acme" in out
    assert out.count("pin_") == 2


def test_warm_says_what_is_not_pinned_and_fails(redis_url: str, run: Run, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=("--pin-delay", "60")):
        file = lines(tmp_path / "p.jsonl", {"prompt": "short"}, {"prompt": "u" * 20}, {"prompt": "x" * 5000})
        found = run("warm", file, "--timeout", "3")
        assert found.code == 1
        assert "it is shorter (5) than a block of 16 tokens" in found.out
        assert "not every worker holds it yet" in found.out
        assert "the prompt has 5000 tokens, and prompt and answer together may have 4096" in found.out


def test_blocks_that_are_there_but_not_kept_are_not_a_pin() -> None:
    """They go when others need room."""
    kept = HeldPin(id="p", tier="gpu")
    seconds = {"age": 1.0, "ttl": 9.0, "expires_in": 8.0}
    for problem, words in (("no_room", "no_room: pins may take a quarter of a worker's"), ("new word", "new word")):
        workers = {"a": kept, "b": HeldPin(id="p", tier="gpu", problem=problem)}
        view = PinView(id="p", tenant="", tokens=16, bytes=1, hits=0, workers=workers, **seconds)
        assert (view.is_settled, view.is_resident) == (True, False)
        assert cache_warming._warmed("line 1", "job", "", view).problem.startswith(words)


def test_warm_without_a_worker(redis_url: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text("be brief")
    found = run("warm", str(file))
    assert (found.code, "start a worker" in found.err) == (1, True)
    with WorkerProcess(redis_url, tmp_path):
        pass
    found = run("warm", str(file), "--timeout", "1", "--json")
    assert found.code == 1
    assert found.err == "no worker of letters is running; waiting for one\n"
    assert json.loads(found.out)[0]["problem"] == "no worker has taken the job in time"


def test_a_model_that_nobody_serves_is_named_alone(run: Run, client: Client, tmp_path: Path) -> None:
    found = run("warm", lines(tmp_path / "p.jsonl", {"prompt": "a"}), "--model", "typo")
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("millrace: no worker has registered model 'typo'")


@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("evict", "--all")])
def test_an_empty_answer_about_a_model_that_nobody_serves_says_so(run: Run, client: Client, words: list[str]) -> None:
    found = run(*words, "--model", "typo")
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("millrace: no worker has registered model 'typo'")
    assert run(*words, "--model", "demo").code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no lines; each is an object with system, messages, prompt or prompt_token_ids"),
        ('{"prompt": "a"}\n\n{"prompt"', "line 3 is no JSON"),
        ("[1]", "line 1 must be an object with"),
        ('{"model": "a"}', "line 1: there is no 'model' here; there are system, messages,"),
        ('{"prompt": "a"}\n{"prompt": ""}', "line 2: prompt is empty"),
        ('{"prompt": "a", "cache_ttl": 5}', "line 1: cache_ttl is 60 to 2,592,000 seconds (30 days), not 5"),
        (
            '{"prompt": "a", "cache_ttl": 2678400}',
            "line 1: cache_ttl is 60 to 2,592,000 seconds (30 days), not 2,678,400",
        ),
        ('{"cache_salt": "a"}', "line 1: give exactly one of prompt"),
    ],
)
def test_lines_that_cannot_be_used_are_named(
    redis_url: str, run: Run, client: Client, tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    found = run("warm", str(file))
    assert (found.code, found.out) == (1, "")
    assert words in found.err
    assert client.queue_stats().lanes["interactive"].waiting == 0, "none was submitted"


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "system.txt"
    for data, words in ((b"\n", "is empty; it is taken for a system prompt"), (b"\xff", "is not UTF-8")):
        file.write_bytes(data)
        with pytest.raises(InvalidRequest, match=words):
            read_prefixes(file, None)


def test_where_it_is_held_by_many_workers(run: Run, client: Client, raw: redis.Redis, keys: QueueKeys) -> None:
    """Workers that died, that are older, or that other models have are not asked."""
    pin = Pin(id=pin_id("", [1] * 16), token_ids=(1,) * 16)
    raw.hset(keys.pins, pin.id, encode(pin))
    raw.hset(keys.pin_terms, pin.id, f"16 600 {time.time()} ")
    raw.zadd(keys.pin_expiry, {pin.id: time.time() + 600})

    def worker(name: str, *, alive: bool = True, at: float = time.time(), **held: Any) -> None:
        raw.zadd(keys.workers, {name: time.time()})
        beat = WorkerInfo(name=name, model="demo", host="h", pid=1, device="cpu", started_at=1.0, beat_at=at)
        if alive:
            raw.set(keys.worker(name), encode(beat), ex=60)
        if held:
            raw.set(keys.cache(name), encode(WorkerCache(worker=name, at=1.0, pins=(HeldPin(id=pin.id, **held),))))

    worker("dead", alive=False, tier="gpu", hits=100)
    worker("silent", at=time.time() - 20, tier="gpu", hits=100)
    assert "no worker" in run("list").out
    worker("a", tier="gpu", blocks=1, bytes=2_500_000_000, hits=3)
    assert "│ 2.50 GB │" in run("list").out
    worker("b", tier="disk", blocks=1, bytes=10, hits=4, problem="no_room\x1b[2J")
    worker("old")
    out = run("list").out
    for words in ("gpu: a", "disk (no_room\ufffd[2J): b", "-: old", "7 │"):
        assert words in out
    for n in range(4):
        worker(f"more{n}", tier="gpu")
    assert "gpu on 5" in run("list").out
    (view,) = json.loads(run("list", "--json").out)
    assert view["workers"]["old"] is None
    assert len(view["workers"]) == 7
