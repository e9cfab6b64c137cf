"""The demo model behind the gateway, against transformers' float32 logits: log-probabilities, penalties and biases."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from gateway_server import GatewayServer
from millrace.embedded import EmbeddedRedis
from millrace.gateway import GatewaySettings
from millrace_schemas import Message, Role
from millrace_worker.model_path import resolve_model
from millrace_worker.tokenizer import Tokenizer

HELLO: list[Any] = [
    {"role": "system", "content": "Change the words by the rule."},
    {"role": "user", "content": "Uppercase every word: quiet river"},
]


@pytest.fixture(scope="module")
def demo() -> Iterator[openai.OpenAI]:
    """OpenAI's client before a gateway and a worker with the demo model."""
    with EmbeddedRedis() as server, GatewayServer(server.url, GatewaySettings()) as gateway:
        command = [sys.executable, "-m", "millrace_worker", "--redis-url", server.url, "--device", "cpu"]
        worker = subprocess.Popen(command)
        try:
            limit = time.monotonic() + 120
            while '"demo"' not in httpx2.get(f"{gateway.url}/v1/models").text:
                assert worker.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.1)
            with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=60) as client:
                yield client
        finally:
            worker.terminate()
            worker.wait()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.load(resolve_model("demo"))
    assert tokenizer is not None
    return tokenizer


class Reference:
    """Transformers' model in float32."""

    def __init__(self) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(resolve_model("demo"), dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits(self, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """[len(answer) + 1, V]: what it says at each place of the answer, and behind it."""
        return self._model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :]

    def greedy(
        self, prompt: list[int], count: int, *, presence: float, frequency: float, repetition: float
    ) -> list[int]:
        answer: list[int] = []
        while len(answer) < count:
            logits, counts = self.logits(prompt, answer)[-1].tolist(), Counter(answer)
            for token in {*prompt, *answer}:
                logits[token] *= 1 / repetition if logits[token] > 0 else repetition
            for token, times in counts.items():
                logits[token] -= presence + frequency * times
            answer.append(max(range(len(logits)), key=logits.__getitem__))
        return answer


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def prompt_ids(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode_chat([Message(Role(m["role"]), m["content"]) for m in HELLO])


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_log_probabilities_are_those_of_log_softmax(
    demo: openai.OpenAI, tokenizer: Tokenizer, reference: Reference, temperature: float
) -> None:
    """Of the model itself: neither temperature nor penalties nor filters change them."""
    answer = demo.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=24, temperature=temperature, seed=5, presence_penalty=0.7,
        logprobs=True, top_logprobs=20, extra_body={"top_k": 50},
    )  # fmt: skip
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert answer.usage is not None
    found = choice.logprobs.content or []
    assert len(found) == answer.usage.completion_tokens
    ids = {tokenizer.token_bytes(i): i for i in reversed(range(2000)) if tokenizer.token_bytes(i) is not None}
    answer_ids = [ids[bytes(token.bytes or ())] for token in found]
    exact = reference.logits(prompt_ids(tokenizer), answer_ids)[:-1].double().log_softmax(-1)
    values, order = exact.sort(descending=True, stable=True)
    for place, (token, token_id) in enumerate(zip(found, answer_ids, strict=True)):
        assert token.logprob == pytest.approx(float(exact[place, token_id]), abs=1e-4)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(values[place, :20].tolist(), abs=1e-4)
        assert list(token.top_logprobs[0].bytes or ()) == list(tokenizer.token_bytes(int(order[place, 0])) or b"")
        assert sum(torch.tensor([top.logprob for top in token.top_logprobs]).exp()) <= 1 + 1e-5
    visible = [
        token for token, token_id in zip(found, answer_ids, strict=True) if token_id not in tokenizer.eos_token_ids
    ]
    assert b"".join(bytes(token.bytes or ()) for token in visible).decode() == choice.message.content


@pytest.mark.parametrize(
    "penalties",
    [
        {"presence": 2.0, "frequency": 0.0, "repetition": 1.0},
        {"presence": 0.0, "frequency": 2.0, "repetition": 1.0},
        {"presence": 0.5, "frequency": 0.5, "repetition": 1.4},
    ],
    ids=["presence", "frequency", "all"],
)
def test_penalties_change_a_repeating_answer_as_the_definitions_say(
    demo: openai.OpenAI, tokenizer: Tokenizer, reference: Reference, penalties: dict[str, float]
) -> None:
    asked: dict[str, Any] = {
        "model": "demo", "max_tokens": 24, "temperature": 0,
        "presence_penalty": penalties["presence"], "frequency_penalty": penalties["frequency"],
        "extra_body": {"ignore_eos": True, "repetition_penalty": penalties["repetition"]},
    }  # fmt: skip
    none = {"presence": 0.0, "frequency": 0.0, "repetition": 1.0}
    prompt = tokenizer.encode("a b a b a b")
    pieces = demo.completions.create(**asked, prompt="a b a b a b", stream=True)
    text = "".join(chunk.choices[0].text for chunk in pieces)
    wanted, free = reference.greedy(prompt, 24, **penalties), reference.greedy(prompt, 24, **none)
    assert text == tokenizer.decode(wanted)
    assert max(Counter(free).values()) > max(Counter(wanted).values())


def test_draws_with_penalties_do_not_depend_on_their_neighbours(demo: openai.OpenAI) -> None:
    def ask(seed: int, count: int = 20) -> str | None:
        return (
            demo.chat.completions.create(
                model="demo", messages=HELLO, max_tokens=count, seed=seed, temperature=1.5, frequency_penalty=1.0,
                extra_body={"repetition_penalty": 1.1, "ignore_eos": True},
            )
            .choices[0]
            .message.content
        )  # fmt: skip

    alone = [ask(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(ask, range(6)))
    assert together == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("path", ["chat/completions", "completions", "jobs"])
def test_a_bias_keeps_tokens_out_or_leaves_nothing_else(demo: openai.OpenAI, tokenizer: Tokenizer, path: str) -> None:
    def answer(bias: dict[str, float]) -> str:
        sampling = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, "logit_bias": bias}
        prompt = {"messages": HELLO} if path != "completions" else {"prompt": "quiet river"}
        body = {"model": "demo", **prompt, **({"sampling": sampling} if path == "jobs" else sampling)}
        url = str(demo.base_url) + path
        got = httpx2.post(url, json=body, timeout=60)
        assert got.status_code < 300, got.text
        if path == "jobs":
            got = httpx2.get(f"{url}/{got.json()['id']}", params={"wait": 30}, timeout=60)
            return str(got.json()["result"]["choices"][0]["text"])
        choice = got.json()["choices"][0]
        return str(choice["message"]["content"] if path == "chat/completions" else choice["text"])

    free = answer({})
    kept_out = {str(token): -100.0 for token in tokenizer.encode(free)}
    assert not set(tokenizer.encode(answer(kept_out))) & {int(token) for token in kept_out}
    (only,) = tokenizer.encode("a")[-1:]
    assert answer({str(only): 100}) == tokenizer.decode([only] * 8)


def test_log_probabilities_are_those_without_a_bias(demo: openai.OpenAI, tokenizer: Tokenizer) -> None:
    def first(bias: dict[str, int]) -> Any:
        answer = demo.chat.completions.create(
            model="demo", messages=HELLO, max_tokens=1, temperature=0, logprobs=True, top_logprobs=3, logit_bias=bias
        )
        assert answer.choices[0].logprobs is not None
        return (answer.choices[0].logprobs.content or [])[0]

    free = first({})
    ids = {tokenizer.token_bytes(i): i for i in reversed(range(2000))}
    second = free.top_logprobs[1]
    biased = first({str(ids[bytes(second.bytes)]): 100})
    assert (biased.token, biased.logprob) == (second.token, pytest.approx(second.logprob, abs=1e-4))
    assert [top.token for top in biased.top_logprobs] == [top.token for top in free.top_logprobs]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"logit_bias": {"5": 100.5}}, "logit_bias"),
        ({"logit_bias": {"1000000": 1}}, "logit_bias"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_bad_values_are_named(demo: openai.OpenAI, given: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError, match=param) as refused:
        demo.chat.completions.create(model="demo", messages=HELLO, **given)
    assert refused.value.param == param
