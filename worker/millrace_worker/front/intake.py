"""From a leased job to one that the engine can run, or to the error that ends it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from millrace_schemas import DecodeError, ErrorCode, InvalidRequest, Request, decode
from millrace_worker.frames import Ready, SequenceParams
from millrace_worker.stream.checkpoint import read_words
from millrace_worker.stream.lease import LeasedJob

from .job import Job
from .text import TextTools, Tokenizer

#: Longer texts, in characters, are tokenized in a thread; shorter ones cost less than the thread.
_LONG_TEXT = 8192


def read_request(leased: LeasedJob) -> Request:
    """The job's request.

    Raises InvalidRequest when its bytes are no request (code undecodable) or ask for something impossible.
    """
    try:
        return decode(leased.request, Request)
    except DecodeError as e:
        error: BaseException | None = e
        while error is not None:
            if isinstance(error, InvalidRequest):
                raise error from e
            error = error.__cause__
        raise InvalidRequest(str(e), code=ErrorCode.UNDECODABLE) from e


async def prepare(leased: LeasedJob, request: Request, tools: TextTools, ready: Ready) -> Job:
    """The job with its prompt's ids and settled sampling. Raises InvalidRequest with the code that ends it."""
    prompt = await _prompt_ids(request, tools.tokenizer)
    if not prompt:
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    if max(prompt) >= ready.vocab_size:
        raise InvalidRequest(
            f"token id {max(prompt)} is outside the model's vocabulary of {ready.vocab_size}", param="prompt_token_ids"
        )
    before, _ = read_words(leased.checkpoint, request.sampling.logprobs)
    if max(before, default=0) >= ready.vocab_size:
        # In the engine it would take the neighbours along.
        raise InvalidRequest(
            f"the tokens of an earlier attempt hold id {max(before)}, outside the model's vocabulary of "
            f"{ready.vocab_size}: another model made them, or the checkpoint is damaged",
            code=ErrorCode.INTERNAL,
        )
    highest = max(request.sampling.logit_bias, default=0)
    if highest >= ready.vocab_size:
        raise InvalidRequest(
            f"sampling.logit_bias holds token id {highest}, outside the model's vocabulary of {ready.vocab_size}",
            param="sampling.logit_bias",
        )
    room = ready.max_model_len - len(prompt)
    if room < 1:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens, and prompt and answer together may have {ready.max_model_len}",
            param="prompt",
            code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        )
    wanted = max(request.sampling.max_tokens or 0, request.sampling.min_tokens)
    if wanted > room:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens and the answer may have {wanted}, together more than the "
            f"{ready.max_model_len} that this model serves; ask for at most {room}",
            param="sampling.max_tokens",
            code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        )
    if request.sampling.stop and tools.tokenizer is None:
        raise InvalidRequest("stop strings need a tokenizer, and this model has none", param="sampling.stop")
    return Job(leased, request, prompt, _params(leased, request, tools.tokenizer, room), tools)


async def _prompt_ids(request: Request, tokenizer: Tokenizer | None) -> list[int]:
    if request.prompt_token_ids is not None:
        return list(request.prompt_token_ids)
    if tokenizer is None:
        raise InvalidRequest(
            "this model has no tokenizer; send prompt_token_ids", param="prompt", code=ErrorCode.TOKENIZATION_FAILED
        )
    encode: Callable[[], list[int]]
    if request.messages is not None:
        messages = request.messages
        length = sum(len(m.content) for m in messages)
        encode = lambda: tokenizer.encode_chat(messages)  # noqa: E731
    else:
        prompt = request.prompt or ""
        length = len(prompt)
        encode = lambda: tokenizer.encode(prompt)  # noqa: E731
    try:
        return await asyncio.to_thread(encode) if length > _LONG_TEXT else encode()
    except InvalidRequest:
        raise
    except Exception as e:
        # A chat template is a program that came with the model: it may raise anything.
        raise InvalidRequest(
            f"the prompt cannot be tokenized: {e}", param="prompt", code=ErrorCode.TOKENIZATION_FAILED
        ) from e


def _params(leased: LeasedJob, request: Request, tokenizer: Tokenizer | None, room: int) -> SequenceParams:
    s = request.sampling
    end = () if s.ignore_eos or tokenizer is None else tokenizer.eos_token_ids
    return SequenceParams(
        max_tokens=room if s.max_tokens is None else s.max_tokens,
        min_tokens=s.min_tokens,
        temperature=s.temperature,
        top_k=s.top_k,
        top_p=s.top_p,
        min_p=s.min_p,
        seed=_seed(leased.lease.job_id) if s.seed is None else s.seed,
        stop_token_ids=tuple(dict.fromkeys((*s.stop_token_ids, *end))),
        presence_penalty=s.presence_penalty,
        frequency_penalty=s.frequency_penalty,
        repetition_penalty=s.repetition_penalty,
        logprobs=s.logprobs,
        logit_bias=tuple((token, bias) for token, bias in s.logit_bias.items() if bias),
        cache_salt=request.effective_salt,
        marked=request.cache == "pin",
    )


def _seed(job_id: str) -> int:
    """A seed that all attempts of a job agree on, should its producer not have drawn one."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "little") >> 1
