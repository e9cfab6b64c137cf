"""The gateway does what its OpenAPI document says: schemathesis makes requests from it and judges the answers."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import settings
from schemathesis.checks import CheckFunction
from schemathesis.config import SchemathesisConfig
from schemathesis.generation.feedback import FeedbackSources
from schemathesis.generation.hypothesis.reporting import ignore_hypothesis_output
from schemathesis.generation.meta import TestPhase
from schemathesis.pytest._test_builder import build_operation_test
from schemathesis.python._constants.orchestrator import make_constants_value_source
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fake_worker import FakeWorker, register
from gateway_server import GatewayServer
from millrace.embedded import EmbeddedRedis
from millrace.gateway import GatewaySettings
from millrace.gateway.openapi.document import build_document

SETTINGS = GatewaySettings(keep_alive=0.3, answer_timeout=10.0, max_jobs=5)
numbers = itertools.count()
#: Requests for the limits of each operation, counted.
limits: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


def config(examples: int, seed: int = 1) -> SchemathesisConfig:
    """Besides one request for each limit of each schema, so many random ones of each operation."""
    generation = {"deterministic": True, "max-examples": examples}
    # The document has links; those that schemathesis would guess lead elsewhere.
    phases = {"stateful": {"inference": {"algorithms": []}}}
    return SchemathesisConfig.from_dict(
        {"seed": seed, "generation": generation, "phases": phases, "request-timeout": 20}
    )


def document() -> dict[str, Any]:
    """As it is served, but for the longest arrays: schemathesis would make one of exactly so many messages."""
    found = build_document(SETTINGS)
    bodies = found["components"]["schemas"]
    for name in ("ChatCompletionRequest", "MessagesJob"):
        del bodies[name]["properties"]["messages"]["maxItems"]
    del bodies["ResponseRequest"]["properties"]["input"]["oneOf"][1]["maxItems"]
    return found


def load(config: SchemathesisConfig) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(document(), config=config)


def check(case: schemathesis.Case, url: str, session: requests.Session) -> requests.Response | None:
    """Sends one request, and fails unless the answer is one that the document has."""
    if case.meta is not None and case.meta.generation.mode.is_positive:
        repair(case)
    return case.call_and_validate(base_url=url, session=session, excluded_checks=excluded(case))


def repair(case: schemathesis.Case) -> None:
    """Makes a request that the document allows one that the gateway does, where no schema can say what it needs."""
    for body in case.body if isinstance(case.body, list) else [case.body]:
        if isinstance(body, dict):
            # Most names are of no model, and a 404 says little.
            body["model"] = "demo"
            order_limits(body.get("sampling") or {}, "max_tokens")
    if isinstance(case.body, dict):
        if case.path == "/v1/completions" and case.body.get("max_tokens") is None:
            case.body["max_tokens"] = 16
        both = ("max_tokens", "max_completion_tokens")
        if all(case.body.get(name) is not None for name in both):
            case.body["max_completion_tokens"] = case.body["max_tokens"]
        for name in (*both, "max_output_tokens"):
            order_limits(case.body, name)
    # Only events have numbers.
    if case.query and "starting_after" in case.query:
        case.query["stream"] = "true"
    # The second request under a key finds the job of the first one, whatever it asks for.
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = f"{next(numbers)}"


def order_limits(values: dict[str, Any], most: str) -> None:
    """min_tokens is no more than max_tokens."""
    if values.get(most) is not None and values.get("min_tokens") is not None:
        values["min_tokens"] = min(values["min_tokens"], values[most])


def skipped(case: schemathesis.Case) -> bool:
    """Whether this request is left out: there are thousands for the limits of all bodies, much the same ones in each,
    and every third is enough to see that the document and the gateway go together."""
    meta = case.meta
    if meta is None or meta.phase.name is not TestPhase.COVERAGE or case.operation.method != "post":
        return False
    return next(limits[case.operation.label]) % 3 != 0


def excluded(case: schemathesis.Case) -> list[CheckFunction]:
    # Deleting a response is documented as impossible: nothing is accepted.
    if case.operation.label == "DELETE /v1/responses/{id}":
        return [positive_data_acceptance]
    # schemathesis 4.32 begins with a number for a header that has a pattern, and calls that request right.
    wrong = case.meta is not None and any(part.mode.is_negative for part in case.meta.components.values())
    return [positive_data_acceptance] if wrong else []


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A gateway whose worker ends every job at once, and whose model takes all numbers of tokens there are."""
    with EmbeddedRedis() as redis, FakeWorker(redis.url), GatewayServer(redis.url, SETTINGS) as gateway:
        register(redis.url, max_model_len=2**63 - 1, vocab_size=2**31)
        yield gateway.url


schema = load(config(5))
OPERATIONS = {operation.label: operation for operation in (found.ok() for found in schema.get_all_operations())}


def test_what_was_made_can_be_read_and_cancelled(url: str, session: requests.Session) -> None:
    """Follows the links of the document, from what made a job to what takes its id."""
    # What was made without `stream` has no events, and without `background` it cannot be cancelled.
    refusing: list[CheckFunction] = [positive_data_acceptance]
    followed: Counter[tuple[str, int]] = Counter()

    linked = load(config(5)).include(path_regex="/v1/(jobs|responses)")

    class Links(linked.as_state_machine()):  # type: ignore[misc]
        def validate_response(self, response: Any, case: schemathesis.Case, **kwargs: Any) -> None:
            followed[case.operation.label, response.status_code] += 1
            case.validate_response(response, excluded_checks=refusing)

        def before_call(self, case: schemathesis.Case) -> None:
            if case.meta is not None and case.meta.generation.mode.is_positive:
                repair(case)

        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
            return {"base_url": url, "session": session}

    Links.run(settings=settings(max_examples=20, stateful_step_count=4, derandomize=True, deadline=None, database=None))
    # Which links so few steps follow is a matter of luck.
    links = {"GET /v1/jobs/{id}", "GET /v1/responses/{id}", "DELETE /v1/jobs/{id}", "POST /v1/responses/{id}/cancel"}
    assert len(links & {label for label, status in followed if status == 200}) >= 2, followed


# Not by schema.parametrize(), which makes all requests of all operations in every process that only collects tests, and
# under pytest 9.2 gives all of them one name, of which pytest-xdist runs one. Nor as subtests, which fail there.
@pytest.mark.parametrize("label", OPERATIONS)
def test_requests_of_the_document(label: str, url: str, session: requests.Session) -> None:
    sent = itertools.count()

    def judge(case: schemathesis.Case) -> None:
        if not skipped(case):
            check(case, url, session)
            next(sent)

    constants = FeedbackSources(constants_value_source=make_constants_value_source(schema))
    judge_all = build_operation_test(
        config=schema.config, operation=OPERATIONS[label], test_func=judge, given_kwargs={}, feedback=constants
    )
    with ignore_hypothesis_output():
        judge_all()
    assert next(sent) > 0
