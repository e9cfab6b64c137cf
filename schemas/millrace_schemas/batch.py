"""A bulk file: its record under OpenAI's names, how far it has come, and every move between its statuses."""

from __future__ import annotations

import re
import secrets
from enum import StrEnum
from types import MappingProxyType

import msgspec

from .errors import IllegalTransition
from .trace_context import check_traceparent

#: Lines that a validation names before it stops.
MAX_ERRORS = 100
MAX_CUSTOM_ID = 512
_BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")


class BatchStatus(StrEnum):
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class BatchEvent(StrEnum):
    #: The file is fit to be worked off.
    BEGIN = "begin"
    #: The file is not what it has to be, or did not stay so.
    FAIL = "fail"
    #: Every line has its end.
    FINALIZE = "finalize"
    COMPLETE = "complete"
    #: The completion window was over before the last line had its answer.
    EXPIRE = "expire"
    CANCEL = "cancel"
    #: What was under way when it was cancelled has ended.
    CANCELLED = "cancelled"


BATCH_TERMINAL = frozenset(
    {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)  # fmt: skip

BATCH_TRANSITIONS: MappingProxyType[BatchStatus, MappingProxyType[BatchEvent, BatchStatus]] = MappingProxyType(
    {
        BatchStatus.VALIDATING: MappingProxyType(
            {
                BatchEvent.BEGIN: BatchStatus.IN_PROGRESS,
                BatchEvent.FAIL: BatchStatus.FAILED,
                BatchEvent.CANCEL: BatchStatus.CANCELLING,
            }
        ),
        BatchStatus.IN_PROGRESS: MappingProxyType(
            {
                BatchEvent.FINALIZE: BatchStatus.FINALIZING,
                BatchEvent.FAIL: BatchStatus.FAILED,
                BatchEvent.CANCEL: BatchStatus.CANCELLING,
            }
        ),
        BatchStatus.FINALIZING: MappingProxyType(
            {BatchEvent.COMPLETE: BatchStatus.COMPLETED, BatchEvent.EXPIRE: BatchStatus.EXPIRED}
        ),
        BatchStatus.CANCELLING: MappingProxyType(
            {BatchEvent.CANCELLED: BatchStatus.CANCELLED, BatchEvent.FAIL: BatchStatus.FAILED}
        ),
        BatchStatus.FAILED: MappingProxyType({}),
        BatchStatus.COMPLETED: MappingProxyType({}),
        BatchStatus.EXPIRED: MappingProxyType({}),
        BatchStatus.CANCELLED: MappingProxyType({}),
    }
)


def advance_batch(status: BatchStatus, event: BatchEvent) -> BatchStatus:
    """The status after `event`.

    Raises IllegalTransition when the table has no such move.
    """
    try:
        return BATCH_TRANSITIONS[status][event]
    except KeyError:
        raise IllegalTransition(f"a batch in status {status!s} has no move {event!s}") from None


class FileFormat(StrEnum):
    #: OpenAI's: a request with a custom_id a line.
    OPENAI = "openai"
    #: An object a line, a row a record: one column holds the prompt.
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class PromptColumn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How rows become requests. `body` is what all of them share: model, max_tokens and so on, under OpenAI's names."""

    column: str
    body: dict[str, str | int | float | bool | list[str] | None] = {}
    #: Of the row's own name; None: its number, from 1.
    id_column: str | None = None
    system: str | None = None


class BatchError(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Why a file cannot be worked off; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """A range of the input that one process works on at a time: its first byte (Parquet: row), the one behind it, and
    the number of its first line.
    """

    offset: int
    end: int
    number: int


class Batch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One bulk file. Times are Unix seconds by the clock of Redis."""

    id: str
    #: URL of the input, s3://bucket/key or file:///path, and the prefix of all that is written.
    input: str
    output: str
    created_at: float
    expires_at: float
    completion_window: str
    status: BatchStatus = BatchStatus.VALIDATING
    #: "": that of each line, which must be the same everywhere.
    endpoint: str = ""
    #: "": that of the lines.
    model: str = ""
    format: FileFormat = FileFormat.OPENAI
    rows: PromptColumn | None = None
    tenant: str = ""
    metadata: dict[str, str] = {}
    #: Whom a gateway tells of its end; "": nobody.
    webhook: str = ""
    #: Seconds after which its output and error files go, counted from when they are made; None: they stay.
    output_expires_after: int | None = None
    input_file_id: str = ""
    output_file_id: str = ""
    error_file_id: str = ""
    errors: tuple[BatchError, ...] = ()
    #: What tells this version of the input from any other; "": not looked at yet.
    version: str = ""
    size: int = 0
    total: int = 0
    shards: tuple[Shard, ...] = ()
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None
    #: W3C trace context of whoever made it: its log lines and its jobs belong to that trace.
    traceparent: str | None = None

    def __post_init__(self) -> None:
        if self.traceparent is not None:
            check_traceparent(self.traceparent)


class Line(msgspec.Struct, frozen=True, array_like=True):
    """A line whose job is under way: where it stands, and its name."""

    number: int
    offset: int
    length: int
    custom_id: str


class Page(msgspec.Struct, frozen=True, array_like=True):
    """Lines of a shard that become jobs in an order of their own: where they start and end, the number of the first,
    and how many of them were made jobs.
    """

    offset: int
    end: int
    number: int
    fed: int


class ShardProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How far a shard has come. Together with the batch's parts this is all that a successor needs."""

    #: None: it is not begun.
    page: Page | None = None
    under_way: tuple[Line, ...] = ()
    #: Set when the completion window ended before the last line did.
    expired: bool = False
    #: Every line has ended.
    done: bool = False


class BatchProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How many lines of a batch have ended, and what they took."""

    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    #: The completion window ended before the last line did.
    expired: bool = False
    #: Share of the input that its validation has read, 0 to 1.
    checked: float = 0.0

    @property
    def ended(self) -> int:
        return self.completed + self.failed


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A piece of output that is durable: its name under the batch's parts, its bytes and its lines."""

    name: str
    size: int
    lines: int


class BulkFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file that the HTTP API knows by its id."""

    id: str
    location: str
    filename: str
    size: int
    created_at: float
    purpose: str
    #: From then on nobody sees it any more, and it goes soon after; None: it stays until it is deleted.
    expires_at: float | None = None
    tenant: str = ""


def is_batch_id(text: str) -> bool:
    """Job ids are never like this."""
    return _BATCH_ID.fullmatch(text) is not None


def new_batch_id() -> str:
    return "batch_" + secrets.token_hex(16)


def new_file_id() -> str:
    return "file-" + secrets.token_hex(16)
