"""One full and one sparse value of every type that is stored in Redis or S3."""

from __future__ import annotations

from typing import Any

from millrace_schemas import (
    Choice,
    ErrorCode,
    ErrorInfo,
    Event,
    Finished,
    FinishReason,
    HeldPin,
    JobRecord,
    JobState,
    Lane,
    Latencies,
    Message,
    ModelInfo,
    Pin,
    Request,
    Result,
    Role,
    Sampling,
    Started,
    Timings,
    TokenLogprob,
    Tokens,
    TopLogprob,
    Usage,
    WebhookRecord,
    WorkerCache,
    WorkerInfo,
)

SAMPLING = Sampling(
    max_tokens=64,
    min_tokens=2,
    temperature=0.7,
    top_k=40,
    top_p=0.9,
    min_p=0.05,
    presence_penalty=-0.5,
    frequency_penalty=1.5,
    repetition_penalty=1.1,
    logit_bias={0: -100.0, 2**31 - 1: 0.5},
    logprobs=2,
    seed=2**63 - 1,
    stop=("\n\n", "Ende"),
    stop_token_ids=(2, 2**31 - 1),
    ignore_eos=True,
)
LOGPROB = TokenLogprob(
    "ü", 5, -0.25, (195, 188), (TopLogprob("ü", 5, -0.25, (195, 188)), TopLogprob("", 9, -9999.0, None))
)
RESULT = Result(
    id="demo-01jd3vq6x0m5t9n8q2w4e7r1yz",
    model="demo",
    state=JobState.COMPLETED,
    choices=(
        Choice(0, "Grüße, 🌍", (5, 6, 2), FinishReason.STOP),
        Choice(1, "ü", (5,), FinishReason.LENGTH, (LOGPROB,)),
    ),
    usage=Usage.of(10, 3, 8, {"gpu": 6, "disk": 2}),
    timings=Timings(0.25, 0.5, 1.75),
    attempts=2,
    worker="host-1",
    metadata={"order": "17"},
)

#: name -> (value, type to decode it as)
WIRE_VALUES: dict[str, tuple[Any, Any]] = {
    "request-full": (
        Request(
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            model="org/model-7b",
            messages=(Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "Hello?"), Message(Role.ASSISTANT, "")),
            sampling=SAMPLING,
            lane=Lane.BATCH,
            result_to="s3://bucket/results",
            deadline=1.8e9,
            stream=True,
            metadata={"order": "17", "note": ""},
        ),
        Request,
    ),
    "request-prompt": (Request(model="demo", prompt="\x00 any text \U0001f30d"), Request),
    "request-pin": (Request(model="demo", prompt="a", cache_salt="s", cache="pin", cache_ttl=90.0), Request),
    "request-token-ids": (Request(model="demo", prompt_token_ids=(0, 1, 2**31 - 1)), Request),
    "sampling-full": (SAMPLING, Sampling),
    "sampling-defaults": (Sampling(), Sampling),
    "result-full": (RESULT, Result),
    "result-error": (
        Result(
            id="demo-1",
            model="demo",
            state=JobState.FAILED,
            error=ErrorInfo(ErrorCode.INVALID_REQUEST, "top_p must lie in (0, 1]", "sampling.top_p"),
        ),
        Result,
    ),
    "result-in-s3": (
        Result(id="demo-1", model="demo", state=JobState.COMPLETED, location="s3://bucket/results/demo-1.1.json"),
        Result,
    ),
    "error-info": (ErrorInfo(ErrorCode.INTERNAL, "broke"), ErrorInfo),
    "started": (Started(attempt=2, tokens=17), Event),
    "tokens": (Tokens(start=4, token_ids=(1, 2, 3), text="abc", index=1), Event),
    "tokens-with-logprobs": (Tokens(start=4, token_ids=(1,), text="a", logprobs=(LOGPROB,)), Event),
    "finished": (Finished(RESULT), Event),
    "job-record": (
        JobRecord(
            "demo-1",
            "in_progress",
            2,
            1.5,
            2.5,
            None,
            "host-1",
            True,
            "acme",
            WebhookRecord("retrying", 2, "HTTP 500"),
            "pin_1",
            "too_short",
        ),
        JobRecord,
    ),
    "webhook-record": (WebhookRecord("failed", 10, "HTTP 404"), WebhookRecord),
    "model-info": (ModelInfo(name="demo", max_model_len=2048, vocab_size=512, has_chat_template=True), ModelInfo),
    "pin": (Pin(id="pin_1", token_ids=(0, 2**31 - 1), cache_salt="acme:x"), Pin),
    "worker-cache": (
        WorkerCache(
            worker="host-1",
            at=2.0,
            pins=(HeldPin(id="a", tier="gpu", blocks=3, bytes=2**34, hits=7), HeldPin(id="b", problem="no_room")),
        ),
        WorkerCache,
    ),
    "worker-info": (
        WorkerInfo(
            name="host-1",
            model="demo",
            host="host",
            pid=7,
            device="cpu",
            started_at=1.0,
            beat_at=2.0,
            leased=3,
            running=2,
            waiting=1,
            kv_usage=0.5,
            finished=9,
            output_tokens=99,
            prompt_tokens=70,
            cached_tokens=64,
            latencies={Lane.BATCH: Latencies(first_token={0: 1}, total={0: 1, 116: 2})},
        ),
        WorkerInfo,
    ),
}
