"""For another tenant a job is not there, on every route that there is or will be."""

from __future__ import annotations

import itertools
import time
from typing import Any

import httpx2
import openai
import pytest
import redis
from starlette.routing import Route

from fake_worker import FakeWorker
from key_maker import KeyMaker
from millrace.gateway.app import ROUTES
from millrace_schemas import QueueKeys, new_job_id

JOB_ROUTES = [(route, method) for route in ROUTES if "{id}" in route.path for method in sorted(route.methods or ())]
#: Ways to ask that take another path through a handler.
QUERIES: dict[str, list[dict[str, Any]]] = {
    "/v1/jobs/{id}": [{"wait": 0.1}],
    "/v1/responses/{id}": [{"stream": "true"}, {"stream": "true", "starting_after": 1}],
}


def route_id(value: object) -> str | None:
    return value.path if isinstance(value, Route) else None


def ids_of(http: httpx2.Client, headers: dict[str, str], keys: list[str]) -> dict[str, str]:
    """A job and a response, both in the background and with events."""
    job = http.post("/v1/jobs", json={"prompt": "hello", "stream": True}, headers=headers).json()["id"]
    with http.stream(
        "POST", "/v1/responses", json={"model": "demo", "input": "a", "background": True, "stream": True},
        headers=headers,
    ) as answer:  # fmt: skip
        response = "resp_" + answer.headers["x-request-id"]
    return dict(zip(keys, (job, response), strict=True))


@pytest.mark.parametrize("ended", [False, True], ids=["queued", "ended"])
@pytest.mark.parametrize(("route", "method"), JOB_ROUTES, ids=route_id)
def test_jobs_of_others_are_not_there(
    locked: httpx2.Client, redis_url: str, make_key: KeyMaker, route: Route, method: str, ended: bool
) -> None:
    """Status, body and headers are those of an id that nobody made."""
    owner = make_key.headers(tenant="acme")
    made = ids_of(locked, owner, ["jobs", "responses"])
    if ended:
        with FakeWorker(redis_url):
            for id_ in (made["jobs"], made["responses"].removeprefix("resp_")):
                answer = locked.get(f"/v1/jobs/{id_}", params={"wait": 20}, headers=owner)
                assert answer.json()["state"] == "completed"
    kind = "responses" if route.path.startswith("/v1/responses") else "jobs"
    nobodys = new_job_id("demo") if kind == "jobs" else "resp_" + new_job_id("demo")
    for headers, query in itertools.product(
        (make_key.headers(tenant="other"), make_key.headers()), [{}, *QUERIES.get(route.path, [])]
    ):
        answers = [
            locked.request(method, route.path.replace("{id}", id_), params=query, headers=headers)
            for id_ in (made[kind], nobodys)
        ]
        assert answers[0].status_code in (404, 405)
        assert answers[0].text == answers[1].text.replace(nobodys, made[kind])
        found = [{name: value for name, value in a.headers.items() if name != "date"} for a in answers]
        assert found[0] == found[1]
    record = locked.get(f"/v1/jobs/{made['jobs']}", headers=owner).json()
    assert record["state"] == ("completed" if ended else "queued")
    assert not record["cancel_requested"]


def test_every_route_of_a_job_is_among_them() -> None:
    """A parameter under another name would not be tried above."""
    named = {route.path for route in ROUTES if "{" in route.path} - {route.path for route, _ in JOB_ROUTES}
    assert named <= {"/v1/models/{name:path}", "/page/{name}", "/docs/{name}"}


def test_an_operator_sees_all_jobs_and_makes_its_own(locked: httpx2.Client, make_key: KeyMaker) -> None:
    made = ids_of(locked, make_key.headers(tenant="acme"), ["jobs", "responses"])
    operator = make_key.headers(tenant="ops", operator=True)
    assert locked.get(f"/v1/jobs/{made['jobs']}", headers=operator).json()["tenant"] == "acme"
    assert locked.get(f"/v1/responses/{made['responses']}", headers=operator).json()["status"] == "queued"
    own = locked.post("/v1/jobs", json={"prompt": "a"}, headers=operator).json()["id"]
    assert locked.get(f"/v1/jobs/{own}", headers=make_key.headers(tenant="ops")).status_code == 200
    assert locked.delete(f"/v1/jobs/{made['jobs']}", headers=operator).json()["state"] == "cancelled"


@pytest.mark.parametrize(
    ("own", "target", "status"),
    [
        ("", "redis", 202),
        ("", "s3://bucket/acme", 400),
        ("s3://bucket/acme", "s3://bucket/acme", 202),
        ("s3://bucket/acme/", "s3://bucket/acme/today", 202),
        ("s3://bucket/acme", "s3://bucket/acme-2", 400),
        ("s3://bucket/acme", "s3://bucket", 400),
        ("s3://bucket", "s3://bucket-2/x", 400),
    ],
)
def test_results_go_where_the_key_says(
    locked: httpx2.Client, make_key: KeyMaker, own: str, target: str, status: int
) -> None:
    headers = make_key.headers(tenant="acme", results_to=own)
    answer = locked.post("/v1/jobs", json=[{"prompt": "a"}, {"prompt": "a", "result_to": target}], headers=headers)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["param"] == "result_to"
    operator = make_key.headers(operator=True)
    assert locked.post("/v1/jobs", json={"prompt": "a", "result_to": target}, headers=operator).status_code == 202


def test_keys_of_a_tenant_share_its_jobs(locked: httpx2.Client, make_key: KeyMaker) -> None:
    job = locked.post("/v1/jobs", json={"prompt": "a"}, headers=make_key.headers(tenant="acme")).json()["id"]
    assert locked.get(f"/v1/jobs/{job}", headers=make_key.headers(tenant="acme")).status_code == 200


def test_nobody_names_a_tenant_in_a_body(locked: httpx2.Client, make_key: KeyMaker) -> None:
    answer = locked.post("/v1/jobs", json={"prompt": "a", "tenant": "other"}, headers=make_key.headers(tenant="acme"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tenant")


def test_an_idempotency_key_finds_jobs_of_its_tenant_only(locked: httpx2.Client, make_key: KeyMaker) -> None:
    key = {"idempotency-key": "order-17"}
    tenants = [make_key.headers(tenant=name) for name in ("a", "b", "a")]
    jobs = [locked.post("/v1/jobs", json={"prompt": "a"}, headers={**t, **key}).json()["id"] for t in tenants]
    assert jobs[0] == jobs[2] != jobs[1]


def test_what_openais_clients_do_in_the_background(
    locked_ai: openai.OpenAI, worker: FakeWorker, make_key: KeyMaker
) -> None:
    mine, other = (locked_ai.with_options(api_key=make_key(tenant=name)) for name in ("acme", "other"))
    response = mine.responses.create(model="demo", input="hello", background=True)
    for ask in (other.responses.retrieve, other.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(response.id)
    limit = time.monotonic() + 10
    while mine.responses.retrieve(response.id).status != "completed":
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert mine.responses.retrieve(response.id).output_text == "HELLO"


def test_a_request_that_nobody_can_read_is_its_tenants_secret(
    locked: httpx2.Client, raw: redis.Redis, keys: QueueKeys, make_key: KeyMaker
) -> None:
    owner = make_key.headers(tenant="acme")
    job = locked.post("/v1/jobs", json={"prompt": "a"}, headers=owner).json()["id"]
    raw.hset(keys.job(job), "request", b"\xff")
    path = f"/v1/responses/resp_{job}"
    assert locked.get(path, headers=make_key.headers(tenant="other")).status_code == 404
    assert locked.get(path, headers=owner).status_code == 500
