"""Fixed workloads of token ids: prompt and answer length of every request, from a seed, so any engine can run the same.

`python` random draws, in a fixed order: a changed order is another workload. Figures measured on these workloads are
comparable only while this file gives the same ids.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Ids below this are left out: small ids are special tokens in many vocabularies.
FIRST_ID = 100


@dataclass(frozen=True, slots=True)
class Job:
    prompt: list[int]
    max_tokens: int


class _Draw:
    def __init__(self, vocab_size: int, seed: int) -> None:
        if vocab_size <= FIRST_ID:
            raise ValueError(f"workloads are drawn from ids of {FIRST_ID} and above; this model has {vocab_size}")
        self.random = random.Random(seed)
        self.vocab_size = vocab_size

    def ids(self, count: int) -> list[int]:
        return [self.random.randrange(FIRST_ID, self.vocab_size) for _ in range(count)]

    def log_normal(self, mu: float, sigma: float, low: int, high: int) -> int:
        return max(low, min(high, int(self.random.lognormvariate(mu, sigma))))


def nano(vocab_size: int) -> list[Job]:
    """256 requests, prompt and answer both uniform in 100..1024 (the shape of nano-vllm's benchmark)."""
    draw = _Draw(vocab_size, 0)
    return [Job(draw.ids(draw.random.randint(100, 1024)), draw.random.randint(100, 1024)) for _ in range(256)]


def chat(vocab_size: int) -> list[Job]:
    """1,000 requests with log-normal lengths like ShareGPT's: prompts of about 220 tokens, answers of about 200."""
    draw = _Draw(vocab_size, 1)
    return [Job(draw.ids(draw.log_normal(4.8, 1.1, 4, 2048)), draw.log_normal(4.9, 0.9, 4, 1024)) for _ in range(1000)]


def mixed8k(vocab_size: int) -> list[Job]:
    """1,000 requests like those of `chat`, but every twentieth has a prompt of 8,192 tokens and an answer of 32."""
    draw = _Draw(vocab_size, 4)
    jobs = []
    for number in range(1000):
        if number % 20 == 19:
            jobs.append(Job(draw.ids(8192), 32))
        else:
            jobs.append(Job(draw.ids(draw.log_normal(4.8, 1.1, 4, 2048)), draw.log_normal(4.9, 0.9, 4, 1024)))
    return jobs


def shared2k(vocab_size: int) -> list[Job]:
    """1,024 requests behind one system prompt of 2,048 tokens: 64 tokens of their own, answers of 128."""
    draw = _Draw(vocab_size, 2)
    system = draw.ids(2048)
    return [Job(system + draw.ids(64), 128) for _ in range(1024)]


def fixed(vocab_size: int, count: int, prompt: int, answer: int, seed: int) -> list[Job]:
    """`count` requests of one length."""
    draw = _Draw(vocab_size, seed)
    return [Job(draw.ids(prompt), answer) for _ in range(count)]


def behind(
    vocab_size: int, count: int, prefix: int, systems: int, own: int, answer: int, *, seed: int = 20
) -> list[Job]:
    """`count` requests behind each of so many system prompts of `prefix` tokens, in turn, with `own` tokens more.

    0 system prompts: `count` requests of as many tokens that share nothing.
    """
    draw = _Draw(vocab_size, seed)
    if systems == 0:
        return [Job(draw.ids(prefix + own), answer) for _ in range(count)]
    prompts = [draw.ids(prefix) for _ in range(systems)]
    return [Job(prompts[i % systems] + draw.ids(own), answer) for i in range(count * systems)]


WORKLOADS: dict[str, Callable[[int], list[Job]]] = {
    "nano": nano,
    "chat": chat,
    "shared2k": shared2k,
    "prefill2k": lambda vocab_size: fixed(vocab_size, 128, 2048, 1, 3),
    "decode1": lambda vocab_size: fixed(vocab_size, 1, 1024, 256, 10),
    "decode32": lambda vocab_size: fixed(vocab_size, 32, 1024, 256, 11),
    "decode128": lambda vocab_size: fixed(vocab_size, 128, 1024, 256, 12),
    "decode256": lambda vocab_size: fixed(vocab_size, 256, 1024, 256, 13),
    "mixed8k": mixed8k,
}

#: The word for those of THROUGHPUT.
ALL = "all"
#: What a line of a workload's file is.
LINE = '{"prompt_token_ids": [...], "max_tokens": n}'
#: Workloads in which all requests are there at the start.
THROUGHPUT = tuple(name for name in WORKLOADS if name != "mixed8k")


def warm_up(vocab_size: int, context: int) -> list[Job]:
    """What an engine runs before it is measured: compiles what is compiled at first use.

    `context` is the most tokens, at least 2, of a prompt and its answer that the engine serves.
    """
    answer = min(16, context - 1)
    return fixed(vocab_size, 16, min(256, context - answer), answer, 99)


def named(names: str, vocab_size: int) -> list[tuple[str, list[Job]]]:
    """The workloads of a comma-separated list, each with its name; "all" stands for all of THROUGHPUT.

    Raises ValueError as `load` does, and on a list with nothing in it.
    """
    given = [name.strip() for name in names.split(",") if name.strip()]
    listed = [one for name in given for one in (THROUGHPUT if name == ALL else (name,))]
    if not listed:
        raise ValueError(f"no workload is named; there are {ALL}, {', '.join(WORKLOADS)}")
    return [(Path(name).name, load(name, vocab_size)) for name in dict.fromkeys(listed)]


def one(name: str, vocab_size: int) -> list[Job]:
    """As `load`, where a list or "all" cannot be taken: it says so."""
    if name == ALL or ("," in name and not Path(name).is_file()):
        raise ValueError(f"--workload is {name!r}; it takes one here, of {', '.join(WORKLOADS)}, or a JSONL file")
    return load(name, vocab_size)


def load(name: str, vocab_size: int) -> list[Job]:
    """The workload called `name`, or the one in a JSONL file, with a LINE for each request.

    Raises ValueError that names the line or lists the workloads.
    """
    if name in WORKLOADS:
        return WORKLOADS[name](vocab_size)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"no workload and no file is called {name!r}; there are {', '.join(WORKLOADS)}")
    # Only here: vLLM's environment, which imports this module, has no msgspec.
    from .workload_file import read

    return read(path, vocab_size)
