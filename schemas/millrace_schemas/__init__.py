"""The wire types of Millrace: what producers write, what workers write back, and the names between them."""

from .codec import SCHEMA_VERSION, decode, encode
from .errors import (
    DecodeError,
    ErrorCode,
    ErrorInfo,
    IllegalTransition,
    InvalidRequest,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    JobNotFound,
    MillraceError,
    QueueUnavailable,
    ResultTimeout,
    UnknownModel,
)
from .events import Event, Finished, Started, Tokens
from .job import MAX_JOB_BYTES, JobRecord, Lane, Message, Request, Role, new_job_id, queue_of, queue_of_job
from .keys import GROUP, MODELS, QueueKeys
from .latency import Latencies, bucket_of, percentile
from .logprobs import TokenLogprob, TopLogprob
from .pin import CacheMode, HeldPin, Pin, PinTerms, WorkerCache, pin_id
from .registry import ModelInfo, WorkerInfo
from .result import Choice, FinishReason, Result, Timings, Usage
from .sampling import Sampling
from .states import TERMINAL, TRANSITIONS, JobEvent, JobState, advance
from .webhook import WebhookRecord, WebhookState

__all__ = [
    "GROUP",
    "MAX_JOB_BYTES",
    "MODELS",
    "SCHEMA_VERSION",
    "TERMINAL",
    "TRANSITIONS",
    "CacheMode",
    "Choice",
    "DecodeError",
    "ErrorCode",
    "ErrorInfo",
    "Event",
    "FinishReason",
    "Finished",
    "HeldPin",
    "IllegalTransition",
    "InvalidRequest",
    "JobCancelled",
    "JobError",
    "JobEvent",
    "JobExpired",
    "JobFailed",
    "JobNotFound",
    "JobRecord",
    "JobState",
    "Lane",
    "Latencies",
    "Message",
    "MillraceError",
    "ModelInfo",
    "Pin",
    "PinTerms",
    "QueueKeys",
    "QueueUnavailable",
    "Request",
    "Result",
    "ResultTimeout",
    "Role",
    "Sampling",
    "Started",
    "Timings",
    "TokenLogprob",
    "Tokens",
    "TopLogprob",
    "UnknownModel",
    "Usage",
    "WebhookRecord",
    "WebhookState",
    "WorkerCache",
    "WorkerInfo",
    "advance",
    "bucket_of",
    "decode",
    "encode",
    "new_job_id",
    "percentile",
    "pin_id",
    "queue_of",
    "queue_of_job",
]
