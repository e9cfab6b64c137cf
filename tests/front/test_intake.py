from __future__ import annotations

import asyncio
import dataclasses

import msgspec
import pytest

from fake_text import END
from front_parts import READY, TOOLS, leased_job, request_of
from millrace_schemas import ErrorCode, InvalidRequest, Message, Request, Sampling
from millrace_worker.front.intake import prepare, read_request
from millrace_worker.front.job import Job
from millrace_worker.front.text import TextTools
from millrace_worker.stop import StopChecker
from millrace_worker.stream.lease import LeasedJob


def prepared(request: Request, tools: TextTools = TOOLS, name: str = "j") -> Job:
    return asyncio.run(prepare(leased_job(request, name=name), request, tools, READY))


def with_bytes(data: bytes) -> LeasedJob:
    return dataclasses.replace(leased_job(request_of()), request=data)


def code_of(request: Request, tools: TextTools = TOOLS) -> ErrorCode:
    with pytest.raises(InvalidRequest) as caught:
        prepared(request, tools)
    return caught.value.code


def test_settles_every_parameter() -> None:
    job = prepared(request_of((1, 2, 3), sampling=Sampling(stop_token_ids=(7, END), seed=5, min_tokens=2)))
    assert job.params.max_tokens == 97
    assert job.params.stop_token_ids == (7, END)
    assert job.params.seed == 5
    endless = prepared(request_of(sampling=Sampling(max_tokens=98, ignore_eos=True)))
    assert endless.params.max_tokens == 98
    assert endless.params.stop_token_ids == ()


def test_a_bias_is_of_tokens_that_the_model_has() -> None:
    job = prepared(request_of(sampling=Sampling(logit_bias={999: -100.0, 5: 0.0, 7: 1.5})))
    assert job.params.logit_bias == ((999, -100.0), (7, 1.5))
    assert job.params.penalised
    assert not prepared(request_of(sampling=Sampling(logit_bias={5: 0.0}))).params.penalised
    with pytest.raises(InvalidRequest, match=r"logit_bias holds token id 1000, outside.*of 1000") as caught:
        prepared(request_of(sampling=Sampling(logit_bias={1000: 1.0})))
    assert caught.value.param == "sampling.logit_bias"


def test_a_seed_that_nobody_drew_is_the_same_for_all_attempts() -> None:
    seeds = [prepared(request_of(), name=name).params.seed for name in ("a", "a", "b")]
    assert seeds[0] == seeds[1] != seeds[2]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_text_and_chat_are_tokenized_long_ones_in_a_thread() -> None:
    assert prepared(Request(model="letters", prompt="ab")).prompt == [97, 98]
    assert prepared(Request(model="letters", messages=(Message("user", "ab"),))).prompt == [97, 98]
    assert code_of(Request(model="letters", prompt="a" * 9000)) is ErrorCode.CONTEXT_LENGTH_EXCEEDED


def test_refuses_what_cannot_run() -> None:
    assert code_of(request_of((1,) * 100)) is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert code_of(request_of(sampling=Sampling(max_tokens=99))) is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert code_of(request_of(sampling=Sampling(min_tokens=99))) is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert code_of(request_of((1000,))) is ErrorCode.INVALID_REQUEST
    assert code_of(Request(model="letters", prompt="untokenizable")) is ErrorCode.TOKENIZATION_FAILED


def test_a_checkpoint_of_another_vocabulary_ends_the_job() -> None:
    request = request_of()
    with pytest.raises(InvalidRequest, match="id 1000, outside") as caught:
        asyncio.run(prepare(leased_job(request, checkpoint=(3, 1000)), request, TOOLS, READY))
    assert caught.value.code is ErrorCode.INTERNAL


def test_a_model_without_tokenizer_runs_ids_only() -> None:
    bare = TextTools(None, StopChecker)
    assert prepared(request_of(), bare).close_text(ended_by_token=False) == ""
    assert code_of(Request(model="letters", prompt="a"), bare) is ErrorCode.TOKENIZATION_FAILED
    assert code_of(request_of(sampling=Sampling(stop=("a",))), bare) is ErrorCode.INVALID_REQUEST


def test_reads_requests_and_names_what_is_wrong() -> None:
    request = request_of()
    assert read_request(leased_job(request)) == request
    bad = b"\x01" + msgspec.msgpack.encode({"model": "letters", "prompt": "x", "sampling": {"top_p": 7.0}})
    with pytest.raises(InvalidRequest) as caught:
        read_request(with_bytes(bad))
    assert caught.value.param == "sampling.top_p"
    with pytest.raises(InvalidRequest) as caught:
        read_request(with_bytes(b"\x01\xc1"))
    assert caught.value.code is ErrorCode.UNDECODABLE


def test_tenants_and_salts_have_caches_of_their_own() -> None:
    asked = [("", ""), ("acme", ""), ("", "acme"), ("acme", "x"), ("acme-x", ""), ("", "acme:x")]
    salts = [prepared(request_of(tenant=tenant, cache_salt=salt)).params.cache_salt for tenant, salt in asked]
    assert salts[0] == ""
    assert len(set(salts)) == len(asked)
    assert prepared(request_of(tenant="acme")).params.cache_salt == salts[1]
