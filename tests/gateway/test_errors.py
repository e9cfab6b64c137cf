from __future__ import annotations

import asyncio

import httpx2
import pytest
import redis
from starlette.exceptions import HTTPException

from fake_worker import register
from gateway_server import GatewayServer
from millrace import (
    ClientClosed,
    ErrorCode,
    ErrorInfo,
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobNotFound,
    MillraceError,
    PartlySubmitted,
    QueueUnavailable,
    ResultTimeout,
    ResultUnavailable,
    UnknownModel,
)
from millrace.gateway import GatewaySettings
from millrace.gateway.errors import ApiError, as_api_error
from millrace.gateway.hosts import LOOPBACK
from millrace.gateway.sse import EventResponse, StreamSlots, event


def failed(code: ErrorCode, kind: type[JobFailed] = JobFailed) -> MillraceError:
    return kind("demo-1", ErrorInfo(code, "why", "prompt"))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest("m", param="p"), 400, "invalid_request"),
        (InvalidRequest("m", code=ErrorCode.UNKNOWN_MODEL), 404, "model_not_found"),
        (InvalidRequest("m", code=ErrorCode.JOB_TOO_LARGE), 400, "job_too_large"),
        (UnknownModel("m"), 404, "model_not_found"),
        (JobNotFound("m"), 404, "job_not_found"),
        (QueueUnavailable("m"), 503, "queue_unavailable"),
        (ClientClosed("m"), 503, "queue_unavailable"),
        (PartlySubmitted("m", submitted=["a"], unsure=["b"]), 503, "partly_submitted"),
        (ResultTimeout("m"), 504, "result_timeout"),
        (ResultUnavailable("m"), 502, "result_unavailable"),
        (failed(ErrorCode.CONTEXT_LENGTH_EXCEEDED), 400, "context_length_exceeded"),
        (failed(ErrorCode.NO_CHAT_TEMPLATE), 400, "no_chat_template"),
        (failed(ErrorCode.KV_CAPACITY_EXCEEDED), 400, "kv_capacity_exceeded"),
        (failed(ErrorCode.TOKENIZATION_FAILED), 400, "tokenization_failed"),
        (failed(ErrorCode.UNDECODABLE), 500, "undecodable"),
        (failed(ErrorCode.ENGINE_FAILED), 500, "engine_failed"),
        (failed(ErrorCode.RESULT_STORE_FAILED), 500, "result_store_failed"),
        (failed(ErrorCode.TOO_MANY_ATTEMPTS), 500, "too_many_attempts"),
        (JobCancelled("demo-1", ErrorInfo(ErrorCode.CANCELLED, "why")), 409, "cancelled"),
        (JobExpired("demo-1", ErrorInfo(ErrorCode.DEADLINE_EXCEEDED, "why")), 504, "deadline_exceeded"),
        (HTTPException(404), 404, "unknown_url"),
        (HTTPException(400, "odd"), 400, "bad_request"),
        (RuntimeError("a secret"), 500, "internal"),
    ],
)
def test_statuses(error: Exception, status: int, code: str) -> None:
    found = as_api_error(error)
    assert (found.status, found.code) == (status, code)
    assert found.type == ("invalid_request_error" if status < 500 else "server_error")
    assert "secret" not in found.message


def test_repeats_that_can_only_cost_are_declined() -> None:
    def declined(error: Exception) -> bool:
        return as_api_error(error).headers.get("x-should-retry") == "false"

    # A job that ended its workers one after the other would do so again.
    assert declined(failed(ErrorCode.TOO_MANY_ATTEMPTS))
    assert declined(JobCancelled("demo-1", ErrorInfo(ErrorCode.CANCELLED, "why")))
    assert declined(ResultTimeout("m"))
    assert not declined(failed(ErrorCode.ENGINE_FAILED))
    assert not declined(QueueUnavailable("m"))
    assert int(as_api_error(QueueUnavailable("m")).headers["retry-after"]) > 0


def test_what_is_known_of_a_list_that_broke_off_is_told() -> None:
    error = as_api_error(PartlySubmitted("m", submitted=["a"], unsure=["b", "c"])).body()["error"]
    assert (error["submitted"], error["unsure"]) == (("a",), ("b", "c"))


def test_a_job_that_failed_is_named_by_its_reason_alone() -> None:
    found = as_api_error(failed(ErrorCode.CONTEXT_LENGTH_EXCEEDED))
    assert (found.message, found.param) == ("why", "prompt")


def test_other_hosts_names(redis_url: str) -> None:
    register(redis_url)
    with GatewayServer(redis_url, GatewaySettings(allowed_hosts=LOOPBACK)) as gateway:
        for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]", "[::1]:80", "LOCALHOST"):
            assert httpx2.get(f"{gateway.url}/v1/models", headers={"host": host}).status_code == 200, host
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "[::2]"):
            refused = httpx2.get(f"{gateway.url}/v1/models", headers={"host": host})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed"), host


def test_a_place_for_a_stream_is_given_back_once() -> None:
    slots = StreamSlots(1)
    slot = slots.take()
    with pytest.raises(ApiError) as full:
        slots.take()
    assert full.value.status == 503
    slot.give_back()
    slot.give_back()
    assert slots.used == 0


def test_a_refused_stream_makes_no_job_and_keeps_no_place(redis_url: str) -> None:
    register(redis_url)
    body = {"model": "demo", "messages": [{"role": "user", "content": "a"}], "stream": True}
    with GatewayServer(redis_url, GatewaySettings(max_streams=0)) as gateway, redis.Redis.from_url(redis_url) as raw:
        answer = httpx2.post(f"{gateway.url}/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_streams")
        assert not list(raw.scan_iter("*:job:*"))
    with GatewayServer(redis_url, GatewaySettings(max_streams=1)) as gateway:
        for _ in range(3):
            answer = httpx2.post(f"{gateway.url}/v1/chat/completions", json={**body, "model": "nope"})
            assert answer.json()["error"]["code"] == "model_not_found"


def test_an_error_in_the_middle_of_a_stream_is_its_last_event() -> None:
    async def run() -> list[bytes]:
        async def events():  # type: ignore[no-untyped-def]
            yield event({"a": 1}, name="x", id_="7")
            raise QueueUnavailable("gone")

        async def leave() -> None:
            raise AssertionError("the client did not leave")

        sent: list[bytes] = []
        slots = StreamSlots(1)
        response = EventResponse(events(), settings=GatewaySettings(), slot=slots.take(), on_leave=leave)

        async def receive() -> dict[str, str]:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 200
            else:
                sent.append(bytes(message["body"]))  # type: ignore[call-overload]

        await response({"type": "http"}, receive, send)  # type: ignore[arg-type]
        assert slots.used == 0
        return sent

    first, last, end = asyncio.run(run())
    assert first == b'id: 7\nevent: x\ndata: {"a":1}\n\n'
    assert last.startswith(b'data: {"error":{"message":"gone"')
    assert end == b""
