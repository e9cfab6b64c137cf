"""How much a key may use: 429 in OpenAI's shape, over any number of gateways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import redis

import millrace_worker
from fake_worker import FakeWorker
from gateway_server import GatewayServer
from key_maker import KeyMaker
from millrace.gateway import GatewaySettings
from millrace.openai_api.rate_headers import duration
from millrace_schemas import ErrorCode, ErrorInfo, JobState, QueueKeys, Result, encode
from millrace_schemas.keys import rate_key

_FINISH = Path(millrace_worker.__file__).parent / "stream" / "scripts" / "finish.lua"
CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}


def submit(http: httpx2.Client, headers: dict[str, str], **fields: Any) -> httpx2.Response:
    return http.post("/v1/jobs", json={"prompt": "hello", **fields}, headers=headers)


def jobs_made(raw: redis.Redis) -> int:
    return len(list(raw.scan_iter("millrace:{demo}:job:*", count=1000)))


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 429, answer.text
    found: dict[str, Any] = answer.json()["error"]
    return found


def test_requests_a_minute(locked: httpx2.Client, raw: redis.Redis, make_key: KeyMaker) -> None:
    headers = make_key.headers(requests_per_minute=3)
    for left in (2, 1, 0):
        answer = submit(locked, headers)
        assert answer.status_code == 202
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert re.fullmatch(r"(\d+m)?[\d.]+s|\d+ms", answer.headers["x-ratelimit-reset-requests"])
        assert "x-ratelimit-limit-tokens" not in answer.headers
    refused = submit(locked, headers)
    error = error_of(refused)
    assert (error["type"], error["param"], error["code"]) == ("requests", None, "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 20
    assert 0 < int(refused.headers["retry-after-ms"]) <= 20_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert jobs_made(raw) == 3
    # Looking costs nothing, and other keys have their own.
    assert locked.get("/v1/models", headers=headers).status_code == 200
    assert submit(locked, make_key.headers(requests_per_minute=3)).status_code == 202


def test_without_limits_nothing_is_counted(locked: httpx2.Client, raw: redis.Redis, make_key: KeyMaker) -> None:
    answer = submit(locked, make_key.headers(tenant="acme"))
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
    assert not list(raw.scan_iter("millrace:{@}:rate:*"))


def test_openais_client_waits_as_long_as_it_is_told(
    locked_ai: openai.OpenAI, worker: FakeWorker, make_key: KeyMaker
) -> None:
    patient = locked_ai.with_options(api_key=make_key(requests_per_minute=120), max_retries=1)
    hasty = patient.with_options(max_retries=0)
    # All but one of the minute's worth, as a list of jobs is counted.
    hasty.post("/jobs", body=[{"prompt": "a"}] * 119, cast_to=object)

    def use_up() -> None:
        # On a slow machine some more have become free.
        for _ in range(20):
            hasty.chat.completions.create(**CHAT)

    with pytest.raises(openai.RateLimitError) as caught:
        use_up()
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    assert 0 < int(caught.value.response.headers["retry-after-ms"]) <= 500
    # One repeat is enough.
    assert patient.chat.completions.create(**CHAT).choices[0].message.content == "HELLO"


def test_a_list_is_counted_by_its_jobs_and_refused_whole(
    locked: httpx2.Client, raw: redis.Redis, make_key: KeyMaker
) -> None:
    headers = make_key.headers(requests_per_minute=4)
    assert submit(locked, headers).status_code == 202
    refused = locked.post("/v1/jobs", json=[{"prompt": "a"}] * 4, headers=headers)
    assert refused.headers["x-ratelimit-remaining-requests"] == "3"
    assert (error_of(refused)["type"], "x-should-retry" in refused.headers, jobs_made(raw)) == ("requests", False, 1)
    never = locked.post("/v1/jobs", json=[{"prompt": "a"}] * 5, headers=headers)
    assert "more than it may ever use at once" in error_of(never)["message"]
    assert (never.headers["x-should-retry"], "retry-after" in never.headers) == ("false", False)
    assert locked.post("/v1/jobs", json=[{"prompt": "a"}] * 3, headers=headers).status_code == 202
    assert jobs_made(raw) == 4


def test_tokens_are_counted_as_they_may_be_and_then_as_they_are(
    locked: httpx2.Client, locked_ai: openai.OpenAI, redis_url: str, make_key: KeyMaker
) -> None:
    key = make_key(tokens_per_minute=1000)
    headers = {"authorization": f"Bearer {key}"}
    # 100 tokens of a prompt that is known, and the most that the answer may have.
    job = {"prompt_token_ids": [1] * 100, "prompt": None, "sampling": {"max_tokens": 50}}
    answer = submit(locked, headers, **job)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "850"
    assert "x-ratelimit-limit-requests" not in answer.headers
    # Without max_tokens it is the model's context of 512.
    answer = submit(locked, headers, prompt_token_ids=[1] * 100, prompt=None)
    assert 338 <= int(answer.headers["x-ratelimit-remaining-tokens"]) < 420
    refused = submit(locked, headers, **{**job, "sampling": {"max_tokens": 400}})
    assert (error_of(refused)["type"], error_of(refused)["code"]) == ("tokens", "rate_limit_exceeded")
    with FakeWorker(redis_url):
        ai = locked_ai.with_options(api_key=key)
        for stream in (False, True):
            answer = ai.chat.completions.with_raw_response.create(**CHAT, max_tokens=200, stream=stream)
            answer.http_response.read()
            # The fake worker counts 10 of the prompt and 5 of "HELLO": room for the next one.
            assert int(answer.headers["x-ratelimit-remaining-tokens"]) >= 100, stream
    answer = submit(locked, headers, prompt_token_ids=[1], prompt=None, sampling={"max_tokens": 1})
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) >= 300


def test_a_prompt_of_text_counts_a_quarter_of_its_bytes(locked: httpx2.Client, make_key: KeyMaker) -> None:
    answer = submit(locked, make_key.headers(tokens_per_minute=10_000), prompt="é" * 600, sampling={"max_tokens": 100})
    assert 9580 <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= 9600


def test_requests_that_make_no_job_are_not_counted(locked: httpx2.Client, make_key: KeyMaker) -> None:
    headers = make_key.headers(requests_per_minute=1)
    for body in ({"prompt": ""}, {"nonsense": 1}, [], [{"prompt": "a"}, {"prompt": ""}]):
        assert locked.post("/v1/jobs", json=body, headers=headers).status_code == 400
    assert submit(locked, headers, model="nope").status_code == 404
    assert submit(locked, headers).status_code == 202


def test_two_gateways_share_a_limit(redis_url: str, locked: httpx2.Client, make_key: KeyMaker) -> None:
    headers = make_key.headers(requests_per_minute=4)
    with GatewayServer(redis_url, GatewaySettings(require_keys=True)) as second:
        answers = [
            submit(locked, headers),
            httpx2.post(f"{second.url}/v1/jobs", json={"prompt": "a"}, headers=headers),
            submit(locked, headers),
            httpx2.post(f"{second.url}/v1/chat/completions", json={**CHAT, "model": "nope"}, headers=headers),
            httpx2.post(f"{second.url}/v1/jobs", json={"prompt": "a"}, headers=headers),
            submit(locked, headers),
        ]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 404, 202, 429]


def test_what_is_kept_of_a_limit_goes_by_itself(locked: httpx2.Client, raw: redis.Redis, make_key: KeyMaker) -> None:
    key = make_key(requests_per_minute=60, tokens_per_minute=60_000)
    submit(locked, {"authorization": f"Bearer {key}"})
    assert 0 < raw.ttl(rate_key(key.split("_")[1])) <= 62


def test_durations_as_openai_writes_them() -> None:
    given = (0.0, 0.0195, 0.9999, 1, 8.64, 59.9999, 60, 360, 61.5)
    assert [duration(s) for s in given] == ["0ms", "20ms", "1s", "1s", "8.64s", "1m0s", "1m0s", "6m0s", "1m1.5s"]


@pytest.fixture
def busy(locked: httpx2.Client, make_key: KeyMaker) -> tuple[dict[str, str], str]:
    """Headers of a key whose tenant has the one job that it may have, and that job."""
    headers = make_key.headers(tenant="acme", max_jobs=1)
    job = submit(locked, headers).json()["id"]
    refused = submit(locked, headers)
    assert (error_of(refused)["type"], error_of(refused)["code"]) == ("requests", "too_many_jobs")
    assert int(refused.headers["retry-after"]) > 0
    return headers, job


def test_a_cancelled_job_makes_room(locked: httpx2.Client, busy: tuple[dict[str, str], str]) -> None:
    headers, job = busy
    assert locked.delete(f"/v1/jobs/{job}", headers=headers).json()["state"] == "cancelled"
    assert submit(locked, headers).status_code == 202


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED, JobState.EXPIRED])
def test_an_ended_job_makes_room(
    locked: httpx2.Client, raw: redis.Redis, keys: QueueKeys, busy: tuple[dict[str, str], str], state: JobState
) -> None:
    """Through the script with which workers and queues end jobs."""
    headers, job = busy
    owner = "" if state is JobState.EXPIRED else "w"
    if owner:
        raw.hset(keys.job(job), mapping={"state": "in_progress", "owner": owner, "attempts": 1})
    error = None if state is JobState.COMPLETED else ErrorInfo(ErrorCode.INTERNAL, "it broke")
    result = Result(id=job, model="demo", state=state, error=error, attempts=1)
    script = raw.register_script(_FINISH.read_text())
    done = script(
        keys=[keys.job(job), keys.result(job), keys.tokens(job), keys.events(job), keys.lanes["interactive"],
              keys.deadlines, keys.delayed, keys.dead, keys.done(job), keys.webhooks, keys.unfinished_prefix,
              keys.failures],
        args=[owner, "1" if owner else "0", "workers", "0-1", job, str(state), encode(result), "", "", 60, 0],
    )  # fmt: skip
    assert done == 1
    assert locked.get(f"/v1/jobs/{job}", headers=headers).json()["state"] == state
    assert submit(locked, headers).status_code == 202


def test_openais_client_is_told_of_too_many_jobs(
    locked_ai: openai.OpenAI, idle_worker: FakeWorker, make_key: KeyMaker
) -> None:
    ai = locked_ai.with_options(api_key=make_key(tenant="acme", max_jobs=1))
    ai.responses.create(model="demo", input="a", background=True)
    with pytest.raises(openai.RateLimitError) as caught:
        ai.chat.completions.create(**CHAT)
    assert caught.value.code == "too_many_jobs"


def test_a_list_of_too_many_jobs_makes_none(locked: httpx2.Client, raw: redis.Redis, make_key: KeyMaker) -> None:
    headers = make_key.headers(tenant="acme", max_jobs=3)
    refused = locked.post("/v1/jobs", json=[{"prompt": "a"}] * 4, headers=headers)
    assert (error_of(refused)["code"], jobs_made(raw)) == ("too_many_jobs", 0)
    assert locked.post("/v1/jobs", json=[{"prompt": "a"}] * 3, headers=headers).status_code == 202
