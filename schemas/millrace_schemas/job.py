"""What a producer writes: a Request, and the ids that name a job and its queue."""

from __future__ import annotations

import secrets
import time
from enum import StrEnum
from functools import lru_cache

import msgspec

from .errors import ErrorCode, InvalidRequest
from .pin import CacheMode, check_cache
from .sampling import Sampling
from .trace_context import check_traceparent
from .webhook import WebhookRecord, check_webhook

#: Largest encoded Request that a queue takes, in bytes. Larger inputs belong in S3.
MAX_JOB_BYTES = 4 * 1024 * 1024
MAX_MESSAGES = 4096
MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512
MAX_IDEMPOTENCY_KEY = 256
MAX_MODEL_NAME = 200
MAX_TENANT_NAME = 64
MAX_CACHE_SALT = 256

_MODEL_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")
_TENANT_CHARACTERS = _MODEL_CHARACTERS - {".", "/"}
#: Crockford's base32, lower case: ids sort by time as text and survive URLs and shells.
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGITS = frozenset(_BASE32)
#: Two characters at a time.
_PAIRS = tuple(one + other for one in _BASE32 for other in _BASE32)
_SHIFTS = tuple(range(120, -1, -10))


class Lane(StrEnum):
    """Which stream of the queue a job waits in. Interactive jobs are read first; batch is never starved."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a chat, as in OpenAI's messages."""

    role: Role
    content: str


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One generation job. Construction raises InvalidRequest on anything that no worker could run.

    Exactly one of `prompt`, `prompt_token_ids` and `messages` is set. `messages` go through the model's chat template;
    `prompt` is completed as it is. (The client's `system=` shorthand builds `messages`.)
    """

    model: str
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    sampling: Sampling = Sampling()
    lane: Lane = Lane.INTERACTIVE
    #: "redis", or "s3://bucket/prefix": the result becomes an object there and Redis keeps a pointer.
    result_to: str = "redis"
    #: Unix time in seconds after which the job is not worth running; it then ends as `expired`.
    deadline: float | None = None
    #: Publish tokens while they are made, for `events()`.
    stream: bool = False
    metadata: dict[str, str] = {}
    #: On whose behalf: tenants share neither ids, idempotency keys nor cached prefixes. "": the queue's own producers.
    tenant: str = ""
    #: Jobs of different salts share no cached prefixes, within a tenant or, without one, a queue.
    cache_salt: str = ""
    #: "pin": workers keep what its system messages make of the prompt, or without any all of it, in their caches.
    cache: CacheMode = "auto"
    #: Seconds that the pin lasts after its last use; None: an hour.
    cache_ttl: float | None = None
    #: URL that is told when the job has ended.
    webhook: str | None = None
    #: W3C trace context of the span that submitted it: log lines and spans of the job belong to that trace.
    traceparent: str | None = None

    def __post_init__(self) -> None:
        check_model_name(self.model)
        given = [n for n in ("prompt", "prompt_token_ids", "messages") if getattr(self, n) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                f"give exactly one of prompt, prompt_token_ids and messages, not {' and '.join(given) or 'none'}",
                param="prompt",
            )
        if self.prompt is not None and not self.prompt:
            raise InvalidRequest("prompt is empty", param="prompt")
        if self.prompt_token_ids is not None:
            self._check_token_ids(self.prompt_token_ids)
        if self.messages is not None:
            self._check_messages(self.messages)
        self._check_result_to()
        if self.deadline is not None and not 0 < self.deadline < 1e11:
            raise InvalidRequest(f"deadline is Unix time in seconds, not {self.deadline}", param="deadline")
        self._check_metadata()
        check_tenant(self.tenant)
        if len(self.cache_salt) > MAX_CACHE_SALT:
            raise InvalidRequest(
                f"cache_salt has at most {MAX_CACHE_SALT} characters, not {len(self.cache_salt)}", param="cache_salt"
            )
        check_cache(self.cache, self.cache_ttl)
        if self.webhook is not None:
            check_webhook(self.webhook)
        if self.traceparent is not None:
            check_traceparent(self.traceparent)

    @property
    def effective_salt(self) -> str:
        """What keeps its chains of cached blocks apart: a salt of one tenant is never one of another."""
        # A tenant's name has no colon. Without a tenant and a salt, all share with all.
        return f"{self.tenant}:{self.cache_salt}" if self.tenant or self.cache_salt else ""

    def _check_token_ids(self, ids: tuple[int, ...]) -> None:
        if not ids:
            raise InvalidRequest("prompt_token_ids is empty", param="prompt_token_ids")
        if not all(0 <= t < 2**31 for t in ids):
            raise InvalidRequest("prompt_token_ids takes ids in [0, 2**31)", param="prompt_token_ids")

    def _check_messages(self, messages: tuple[Message, ...]) -> None:
        if not messages:
            raise InvalidRequest("messages is empty", param="messages")
        if len(messages) > MAX_MESSAGES:
            raise InvalidRequest(f"messages takes at most {MAX_MESSAGES}, not {len(messages)}", param="messages")
        if not any(m.content for m in messages):
            raise InvalidRequest("messages are all empty", param="messages")

    def _check_result_to(self) -> None:
        if self.result_to == "redis":
            return
        bucket = self.result_to.removeprefix("s3://").split("/", 1)[0]
        if not self.result_to.startswith("s3://") or not bucket:
            raise InvalidRequest(
                f'result_to is "redis" or "s3://bucket/prefix", not {self.result_to!r}', param="result_to"
            )

    def _check_metadata(self) -> None:
        if len(self.metadata) > MAX_METADATA_PAIRS:
            raise InvalidRequest(
                f"metadata takes at most {MAX_METADATA_PAIRS} pairs, not {len(self.metadata)}", param="metadata"
            )
        for key, value in self.metadata.items():
            if not 0 < len(key) <= MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
                raise InvalidRequest(
                    f"metadata keys have 1 to {MAX_METADATA_KEY} characters, values at most {MAX_METADATA_VALUE}; "
                    f"{key[:MAX_METADATA_KEY]!r} does not fit",
                    param="metadata",
                )


class JobRecord(msgspec.Struct, frozen=True):
    """The fields of a job's hash in Redis that a client may see; times are Unix seconds."""

    id: str
    state: str
    attempts: int
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    worker: str | None = None
    cancel_requested: bool = False
    tenant: str = ""
    #: None: the job has no webhook.
    webhook: WebhookRecord | None = None
    #: Of a job with cache="pin" that a worker has looked at: the pin that it made or prolonged, or why it made none.
    pin: str | None = None
    pin_problem: str | None = None


def check_model_name(model: str) -> None:
    """Raises InvalidRequest unless `model` can name a queue: [A-Za-z0-9._/-], at most 200 characters."""
    if not 0 < len(model) <= MAX_MODEL_NAME or not _MODEL_CHARACTERS.issuperset(model):
        raise InvalidRequest(
            f"model names have 1 to {MAX_MODEL_NAME} characters of A-Z a-z 0-9 . _ - /, not {model[:80]!r}",
            param="model",
            code=ErrorCode.UNKNOWN_MODEL,
        )


def check_tenant(tenant: str) -> None:
    """Raises InvalidRequest unless `tenant` is "" or a name: [A-Za-z0-9_-], at most 64 characters."""
    if len(tenant) > MAX_TENANT_NAME or not _TENANT_CHARACTERS.issuperset(tenant):
        raise InvalidRequest(
            f"tenants have names of 1 to {MAX_TENANT_NAME} characters of A-Z a-z 0-9 _ -, not {tenant[:80]!r}",
            param="tenant",
        )


def queue_of(model: str) -> str:
    """The queue that serves `model`: its name with "/" written "--", as Hugging Face's cache does."""
    check_model_name(model)
    return model.replace("/", "--")


def new_job_id(queue: str) -> str:
    """`<queue>-<26 characters>`: 48 bits of milliseconds, then 80 random ones (the ULID layout)."""
    return job_id_of(queue, time.time_ns() // 1_000_000, secrets.randbits(80))


def job_id_of(queue: str, milliseconds: int, number: int) -> str:
    """The id with these 48 and 80 bits, for whoever must find the same one again."""
    bits = milliseconds << 80 | number
    return f"{queue}-" + "".join([_PAIRS[(bits >> shift) & 1023] for shift in _SHIFTS])


def queue_of_job(job_id: str) -> str:
    """The queue in a job's id.

    Raises InvalidRequest when the text is no job id.
    """
    queue, _, tail = job_id.rpartition("-")
    if not queue or len(tail) != 26 or not _DIGITS.issuperset(tail):
        raise InvalidRequest(f"{job_id[:240]!r} is not a job id (they look like {new_job_id('demo')})", param="id")
    return queue


def time_of_job(job_id: str) -> float:
    """When the job's id was made, Unix seconds by the clock of its producer.

    Raises InvalidRequest when the text is no job id.
    """
    queue_of_job(job_id)
    return _seconds_of(job_id[-26:-16])


@lru_cache
def _seconds_of(digits: str) -> float:
    number = 0
    for digit in digits:
        number = number << 5 | _BASE32.index(digit)
    return number / 1000
