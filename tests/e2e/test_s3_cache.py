"""A worker on another machine begins with what the first one has computed: whole workers, Redis, S3, the demo model."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from millrace import Client, Sampling
from millrace.demo_tasks import PROMPT_OF_TASK, system_prompt
from millrace_schemas import Message, Request, Role
from s3_parts import Objects, until
from servers import S3Server

SYSTEM = system_prompt(next(iter(PROMPT_OF_TASK))) * 4


def requests(count: int) -> list[Request]:
    sampling = Sampling(temperature=0.0, max_tokens=12, ignore_eos=True)
    prompts = (Message(Role.USER, f"{number} apples") for number in range(count))
    return [
        Request(model="demo", messages=(Message(Role.SYSTEM, SYSTEM), prompt), sampling=sampling) for prompt in prompts
    ]


class Worker:
    """One that shares its disk cache through a bucket."""

    def __init__(self, redis_url: str, directory: Path, place: str) -> None:
        self.log = directory.with_suffix(".log")
        command = [*(sys.executable, "-m", "millrace_worker"), "--redis-url", redis_url, "--device", "cpu"]
        command += ["--disk-cache-dir", str(directory), "--s3-cache", place, "--log-format", "json"]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen([*command, "--lease", "2"], stderr=out)
        limit = time.monotonic() + 60
        while '"event": "serving"' not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit
            time.sleep(0.05)


def test_a_new_worker_warms_from_the_bucket(redis_url: str, s3_env: S3Server, tmp_path: Path) -> None:
    objects = Objects(s3_env.url, "kv/" + secrets.token_hex(4))
    first = Worker(redis_url, tmp_path / "first", objects.place)
    try:
        with Client(redis_url, model="demo") as client:
            cold = [client.submit_many(requests(1))[0].result(timeout=60)]
            cold += [job.result(timeout=60) for job in client.submit_many(requests(4)[1:])]
            assert cold[0].usage.cached_tokens == 0
            until(lambda: len(objects.listed()) >= cold[1].usage.cached_tokens // 16 > 5)
    finally:
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    second = Worker(redis_url, tmp_path / "second", objects.place)
    try:
        with Client(redis_url, model="demo") as client:
            (warm,) = (job.result(timeout=60) for job in client.submit_many(requests(1)))
    finally:
        second.process.terminate()
        assert second.process.wait(30) == 0
    assert warm.text == cold[0].text
    assert warm.usage.cached_tokens == cold[1].usage.cached_tokens
    assert warm.usage.cached_by_tier == {"s3": warm.usage.cached_tokens}
