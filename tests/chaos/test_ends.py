"""Every way in which a job can end, through whole workers."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from fake_engine import BAD, expected_tokens
from millrace_schemas import (
    ErrorCode,
    Finished,
    FinishReason,
    JobState,
    Lane,
    Message,
    Request,
    Result,
    Sampling,
    encode,
)
from queue_probe import QueueProbe
from servers import S3Server
from worker_process import WorkerProcess

SLOW = ("--step", "0.02")


def letters(ids: list[int]) -> str:
    return "".join(chr(97 + i % 26) for i in ids)


@pytest.mark.parametrize("tell", [True, False], ids=["told", "found by a beat"])
def test_cancel_a_running_job(redis_url: str, probe: QueueProbe, tmp_path: Path, tell: bool) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=SLOW):
        job, other = probe.submit([1, 1], max_tokens=4000), probe.submit([2, 1], max_tokens=60)
        probe.wait_for("a checkpoint", lambda: probe.checkpoint(job) >= 8)
        probe.cancel_running(job, tell=tell)
        result = probe.wait([job])[job]
        assert probe.wait([other])[other].choices[0].token_ids == tuple(expected_tokens([2, 1], 60))
    assert result.state is JobState.CANCELLED
    assert result.error is not None
    assert result.error.code is ErrorCode.CANCELLED
    (choice,) = result.choices
    assert choice.token_ids == tuple(expected_tokens([1, 1], len(choice.token_ids)))
    assert choice.text == letters(list(choice.token_ids))
    probe.assert_quiet()


def test_cancelled_before_it_is_leased(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    tombstone, asked = probe.submit([1, 1]), probe.submit([2, 1])
    probe.redis.hset(probe.keys.job(tombstone), "state", "cancelled")
    probe.redis.expire(probe.keys.job(tombstone), 100)
    probe.cancel_running(asked)
    with WorkerProcess(redis_url, tmp_path):
        assert probe.wait([asked])[asked].state is JobState.CANCELLED
    assert probe.result(tombstone) is None
    assert probe.job(tombstone)["attempts"] == "0"
    probe.assert_quiet()


def test_deadline_of_a_running_job(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    with WorkerProcess(redis_url, tmp_path, engine=SLOW):
        job = probe.submit([1, 1], max_tokens=4000, deadline=probe.now() + 0.6, stream=True)
        result = probe.wait([job], 10)[job]
    assert result.state is JobState.EXPIRED
    assert result.error is not None
    assert result.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert 0.5 < result.timings.total < 5
    assert result.choices[0].token_ids
    assert result.choices[0].finish_reason is FinishReason.ABORT
    assert probe.events(job)[-1] == Finished(result)
    probe.assert_quiet()


def test_deadline_of_a_queued_job(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    """Passed before any worker came, and passed while all rows were taken."""
    late = probe.submit([1, 1], deadline=probe.now() - 1, metadata={"k": "v"})
    with WorkerProcess(redis_url, tmp_path, engine=(*SLOW, "--rows", "1")):
        assert probe.wait([late])[late].metadata == {"k": "v"}
        running = [probe.submit([n, 1], max_tokens=4000) for n in range(1, 10)]
        probe.wait_for("a full worker", lambda: all(probe.state(job) == "in_progress" for job in running))
        waiting = probe.submit([1, 1], deadline=probe.now() + 0.3)
        result = probe.wait([waiting])[waiting]
        for job in running:
            probe.cancel_running(job)
        probe.wait(running)
        # The entry of a job that expired unread goes when a worker comes to it.
        probe.wait_for("empty lanes", lambda: not any(map(probe.redis.xlen, probe.keys.lanes.values())))
    assert result.state is JobState.EXPIRED
    assert result.attempts == 0
    assert result.error is not None
    assert result.error.code is ErrorCode.DEADLINE_EXCEEDED
    probe.assert_quiet()


def test_malformed_entries(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    lane = probe.keys.lanes[Lane.INTERACTIVE]
    probe.redis.xadd(lane, {"no-job": "here"})
    probe.redis.xadd(lane, {"job": "letters-00000000000000000000000000"})
    request = encode(Request(model="letters", prompt="x"))
    torn = probe.submit_bytes(request[:-3])
    future = probe.submit_bytes(bytes([9]) + request[1:])
    empty = probe.submit_bytes(b"")
    impossible = probe.submit_bytes(bytes([1]) + msgspec.msgpack.encode({"model": "letters", "prompt": ""}))
    good = probe.submit([1, 2], max_tokens=4)
    with WorkerProcess(redis_url, tmp_path):
        results = probe.wait([torn, future, empty, impossible, good])
    assert results[good].state is JobState.COMPLETED
    for job in (torn, future, empty):
        assert results[job].state is JobState.FAILED
        assert results[job].error.code is ErrorCode.UNDECODABLE
    assert "schema version 9" in results[future].error.message
    assert results[impossible].error.code is ErrorCode.INVALID_REQUEST
    assert results[impossible].error.param == "prompt"
    letters_found = {letter["job"]: letter for letter in probe.dead()}
    assert set(letters_found) == {"", torn, future, empty}
    assert "no field named job" in letters_found[""]["reason"]
    assert letters_found[torn]["code"] == "undecodable"
    probe.assert_quiet()


def test_requests_that_cannot_run(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    too_long = probe.submit([1] * 4096)
    outside = probe.submit([5000])
    refused = probe.submit([BAD])
    text = probe.submit("an untokenizable text")
    fine = probe.submit([1, 2], max_tokens=4)
    with WorkerProcess(redis_url, tmp_path):
        results = probe.wait([too_long, outside, refused, text, fine])
    codes = {job: r.error.code if r.error else None for job, r in results.items()}
    assert codes == {
        too_long: ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        outside: ErrorCode.INVALID_REQUEST,
        refused: ErrorCode.KV_CAPACITY_EXCEEDED,
        text: ErrorCode.TOKENIZATION_FAILED,
        fine: None,
    }
    assert all(results[job].state is JobState.FAILED for job in (too_long, outside, refused, text))
    assert probe.dead() == []
    probe.assert_quiet()


def test_answers_stop(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    ids = expected_tokens([1, 2], 40)
    text = letters(ids)
    stop_string, stop_token = text[10:13], ids[7]
    at = text.find(stop_string)
    cut = ids.index(stop_token)
    sampling = {"temperature": 0.0, "seed": 1, "max_tokens": 40}
    by_text = probe.submit([1, 2], sampling=Sampling(stop=(stop_string,), **sampling), stream=True)
    by_token = probe.submit([1, 2], sampling=Sampling(stop_token_ids=(stop_token,), **sampling), stream=True)
    to_the_end = probe.submit([1, 2], sampling=Sampling(stop=("?",), **sampling))
    room = probe.submit([1] * 4090, sampling=Sampling(temperature=0.0, seed=1))
    with WorkerProcess(redis_url, tmp_path):
        results = probe.wait([by_text, by_token, to_the_end, room])
    assert results[by_text].text == text[:at]
    assert results[by_text].choices[0].finish_reason is FinishReason.STOP
    assert results[by_text].choices[0].token_ids == tuple(ids[: len(results[by_text].choices[0].token_ids)])
    assert results[by_token].text == text[:cut]
    assert results[by_token].choices[0].token_ids == tuple(ids[: cut + 1])
    assert results[to_the_end].text == text
    assert results[to_the_end].choices[0].finish_reason is FinishReason.LENGTH
    assert results[room].usage.completion_tokens == 6
    for job in (by_text, by_token):
        events = probe.events(job)
        assert "".join(e.text for e in events if hasattr(e, "text")) == results[job].text
        assert tuple(t for e in events for t in getattr(e, "token_ids", ())) == results[job].choices[0].token_ids
    probe.assert_quiet()


def test_chat(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    messages = (Message("user", "hello"),)
    job = probe.submit_request(
        Request(model="letters", messages=messages, sampling=Sampling(max_tokens=5, temperature=0.0, seed=1))
    )
    with WorkerProcess(redis_url, tmp_path):
        result = probe.wait([job])[job]
    assert result.choices[0].token_ids == tuple(expected_tokens([ord(c) for c in "hello"], 5))


def test_results_go_to_s3(redis_url: str, probe: QueueProbe, tmp_path: Path, s3_env: S3Server) -> None:
    asked = probe.submit([1, 2], max_tokens=8, result_to="s3://answers/run/7")
    small = probe.submit([1, 2], max_tokens=2)
    large = probe.submit([1, 2], max_tokens=300)
    with WorkerProcess(redis_url, tmp_path, result_s3="s3://answers/large", max_result_bytes=600):
        results = probe.wait([asked, small, large])
    assert results[small].location is None
    for job, place, count in ((asked, "run/7", 8), (large, "large", 300)):
        stub = results[job]
        assert stub.location == f"s3://answers/{place}/{job}.1.json"
        assert stub.choices == ()
        assert stub.state is JobState.COMPLETED
        whole = msgspec.json.decode((s3_env.directory / "answers" / place / f"{job}.1.json").read_bytes(), type=Result)
        assert whole.choices[0].token_ids == tuple(expected_tokens([1, 2], count))
        assert whole.usage == stub.usage
    probe.assert_quiet()


def test_a_store_that_is_away_is_tried_again(
    redis_url: str, probe: QueueProbe, tmp_path: Path, s3_env: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempts go back to the queue with their tokens; the last one says why it failed."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    log = tmp_path / "engine.log"
    job = probe.submit([1, 2], max_tokens=8, result_to="s3://answers")
    with WorkerProcess(redis_url, tmp_path, max_attempts=2, engine=("--log", str(log))):
        result = probe.wait([job], 60)[job]
    assert result.state is JobState.FAILED
    assert result.error is not None
    assert result.error.code is ErrorCode.RESULT_STORE_FAILED
    assert result.attempts == 2
    assert len(log.read_text().splitlines()) == 8, "the second attempt generated nothing again"
    probe.assert_quiet()


def test_the_worker_tells_of_itself(redis_url: str, probe: QueueProbe, tmp_path: Path) -> None:
    from millrace_schemas import ModelInfo, WorkerInfo, decode

    with WorkerProcess(redis_url, tmp_path) as worker:
        probe.wait([probe.submit([1, 2], max_tokens=20)])
        (name,) = probe.workers()

        def info() -> WorkerInfo:
            return decode(probe.redis.get(probe.keys.worker(name)), WorkerInfo)

        probe.wait_for("a count", lambda: info().finished == 1)
        told = info()
        model = decode(probe.redis.get(probe.keys.model), ModelInfo)
        registered = probe.redis.zscore("millrace:models", "letters")
        assert worker.stop() == 0
    assert told.pid == worker.pid
    assert told.output_tokens == 20
    # The last step's sequence had gone when its load was taken.
    assert (told.kv_allocated_slots, told.kv_used_slots) == (19 * 16, 19)
    assert abs(told.beat_at - time.time()) < 30
    assert model == ModelInfo(name="letters", max_model_len=4096, vocab_size=1024, has_chat_template=True)
    assert registered > probe.now()
    assert probe.workers() == []
    assert probe.redis.get(probe.keys.worker(name)) is None
