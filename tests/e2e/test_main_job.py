"""The main job with nothing faked: a real Redis, real worker processes, the demo model, the client."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from millrace import Client, Request, Sampling
from millrace.demo_tasks import PROMPT_OF_TASK, make_example, system_prompt
from millrace.embedded import EmbeddedRedis
from millrace_schemas import JobState, Message, QueueKeys, Role
from servers import S3Server, set_credentials

Start = Callable[..., subprocess.Popen[bytes]]
GREEDY = Sampling(temperature=0.0, max_tokens=48)


def run_worker(redis_url: str, *flags: str) -> subprocess.Popen[bytes]:
    """`python -m millrace_worker` on the demo model."""
    return subprocess.Popen(
        [sys.executable, "-m", "millrace_worker", "--redis-url", redis_url, "--device", "cpu", *flags]
    )


@pytest.fixture
def start_worker(redis_url: str) -> Iterator[Start]:
    """Starts workers; whatever still runs at the end is killed."""
    workers: list[subprocess.Popen[bytes]] = []

    def start(*flags: str) -> subprocess.Popen[bytes]:
        workers.append(run_worker(redis_url, *flags))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()


@pytest.fixture(scope="module")
def served(s3_server: S3Server) -> Iterator[Client]:
    """A client before a worker that all tests share to which nothing happens, with a Redis of its own."""
    with pytest.MonkeyPatch.context() as patch, EmbeddedRedis() as server:
        set_credentials(patch)
        worker = run_worker(server.url, "--s3-endpoint-url", s3_server.url)
        try:
            with Client(server.url, model="demo") as client:
                wait_for(client.models)
                yield client
        finally:
            worker.kill()
            worker.wait()


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url, model="demo") as client:
        yield client


def wait_for(what: Callable[[], object], seconds: float = 150) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "gave up waiting"
        time.sleep(0.05)


def demo_requests(count: int, sampling: Sampling = GREEDY) -> tuple[list[Request], list[str]]:
    draw, tasks = random.Random(11), tuple(PROMPT_OF_TASK)
    requests, answers = [], []
    for i in range(count):
        task = tasks[i % len(tasks)]
        example = make_example(draw, task, split="held_out")
        messages = (Message(Role.SYSTEM, system_prompt(task)), Message(Role.USER, example.user))
        requests.append(Request(model="demo", messages=messages, sampling=sampling))
        answers.append(example.answer)
    return requests, answers


def test_a_prompt_goes_through_the_queue_and_is_answered(served: Client) -> None:
    requests, answers = demo_requests(12)
    results = [job.result(timeout=150) for job in served.submit_many(requests)]
    assert sum(r.text == a for r, a in zip(results, answers, strict=True)) >= 11
    for result in results:
        assert result.state is JobState.COMPLETED
        assert result.attempts == 1
        assert result.usage.completion_tokens == len(result.choices[0].token_ids)
    # Four of each system prompt: all but the first find it in the cache.
    assert sum(r.usage.cached_tokens > 0.6 * r.usage.prompt_tokens for r in results) >= 9


def test_kill_9_of_the_worker_loses_and_repeats_nothing(redis_url: str, client: Client, start_worker: Start) -> None:
    """Answers of the survivors' taking over equal those of an undisturbed run, and each job has one result."""
    long = Sampling(temperature=0.8, seed=5, max_tokens=40, ignore_eos=True)
    requests, _ = demo_requests(14, long)
    first = start_worker("--lease", "2", "--max-num-seqs", "6", "--checkpoint-tokens", "8")
    wait_for(client.models)
    jobs = client.submit_many(requests)
    wait_for(lambda: sum(job.state() is JobState.COMPLETED for job in jobs) >= 5)
    first.kill()
    assert any(job.state() is not JobState.COMPLETED for job in jobs)
    start_worker("--lease", "2", "--max-num-seqs", "6", "--checkpoint-tokens", "8")
    results = [job.result(timeout=120) for job in jobs]
    assert {r.state for r in results} == {JobState.COMPLETED}
    assert all(r.usage.completion_tokens == 40 for r in results)
    assert {r.attempts for r in results} == {1, 2}
    undisturbed = [job.result(timeout=120) for job in client.submit_many(requests)]
    assert [r.text for r in results] == [r.text for r in undisturbed]
    keys = QueueKeys("demo")
    with redis.Redis.from_url(redis_url) as server:
        wait_for(lambda: not any(server.xlen(lane) for lane in keys.lanes.values()))
        assert server.xlen(keys.dead) == 0
        assert len(list(server.scan_iter(keys.result("*")))) == 28


def test_streamed_text_is_the_result(served: Client) -> None:
    requests, _ = demo_requests(1)
    request = requests[0]
    assert request.messages
    job = served.submit(messages=request.messages, sampling=GREEDY, stream=True)
    events = list(job.events())
    text = "".join(event.text for event in events if type(event).__name__ == "Tokens")
    assert text == job.result(timeout=5).text


def test_a_stop_string_ends_the_answer_before_it(served: Client) -> None:
    requests, _ = demo_requests(1)
    messages = requests[0].messages
    whole = served.submit(messages=messages, sampling=GREEDY).result(timeout=150).text
    stop = whole[4:7]
    cut = served.submit(messages=messages, sampling=Sampling(temperature=0.0, max_tokens=48, stop=(stop,))).result(
        timeout=150
    )
    assert cut.text == whole[: whole.index(stop)]


def test_unknown_text_is_answered_badly_but_answered(served: Client) -> None:
    texts = ["what is the meaning of life?", "\x00\x01", "日本語のテキスト 🎈", "a" * 500, " "]
    for text in texts:
        result = served.submit(prompt=text, system="Answer.", sampling=GREEDY).result(timeout=150)
        assert result.state is JobState.COMPLETED


def test_results_go_to_s3(served: Client, s3_env: S3Server) -> None:
    requests, answers = demo_requests(1)
    messages = requests[0].messages
    job = served.submit(messages=messages, sampling=GREEDY, result_to="s3://answers/demo")
    result = job.result(timeout=150)
    assert result.text == answers[0]
    assert list((s3_env.directory / "answers" / "demo").glob(f"{job.id}*.json"))


def test_a_drained_worker_hands_over_and_exits_cleanly(client: Client, start_worker: Start) -> None:
    first = start_worker("--grace", "0", "--lease", "600")
    wait_for(client.models)
    long = Sampling(temperature=0.8, seed=5, max_tokens=120, ignore_eos=True)
    requests, _ = demo_requests(4, long)
    jobs = client.submit_many(requests)
    wait_for(lambda: any(job.state() is JobState.IN_PROGRESS for job in jobs))
    first.terminate()
    assert first.wait(30) == 0
    start_worker("--lease", "600")
    # Nobody waits for a lease to run out: that would take longer than this.
    assert {job.result(timeout=150).attempts for job in jobs} == {1}


def test_make_demo_prints_what_it_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "millrace", "demo", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["jobs"] == 64
    assert report["failed"] == 0
    assert report["cached_prompt_share"] > 0.5
    assert 0 <= report["kv_waste"] < 0.2
