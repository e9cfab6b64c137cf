"""A batch from what a caller says."""

from __future__ import annotations

import re

from millrace.tracing import current_traceparent
from millrace_schemas import InvalidRequest
from millrace_schemas.batch import Batch, FileFormat, PromptColumn, new_batch_id
from millrace_schemas.job import MAX_METADATA_KEY, MAX_METADATA_PAIRS, MAX_METADATA_VALUE, check_tenant
from millrace_schemas.webhook import check_webhook

from .rows import ENDPOINTS
from .storage import url_of

#: Longest completion window, in seconds: as long as the record of a job without an end is kept.
MAX_WINDOW = 7 * 86_400
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SUFFIXES = {
    ".jsonl": FileFormat.JSONL, ".ndjson": FileFormat.JSONL, ".csv": FileFormat.CSV,
    ".parquet": FileFormat.PARQUET, ".pq": FileFormat.PARQUET,
}  # fmt: skip


def make_batch(
    source: str,
    output: str,
    *,
    now: float,
    window: str = "24h",
    endpoint: str = "",
    model: str = "",
    rows: PromptColumn | None = None,
    tenant: str = "",
    metadata: dict[str, str] | None = None,
    input_file_id: str = "",
    output_expires_after: int | None = None,
    webhook: str = "",
    batch_id: str | None = None,
) -> Batch:
    """Raises InvalidRequest, StorageError. With `rows` the input is a table, of the kind that its name says.

    The batch belongs to the trace of the code that makes it.
    """
    if endpoint and endpoint not in ENDPOINTS:
        raise InvalidRequest(f"endpoint must be one of {', '.join(ENDPOINTS)}, not {endpoint[:80]!r}", param="endpoint")
    check_tenant(tenant)
    if webhook:
        check_webhook(webhook)
    pairs = metadata or {}
    _check_metadata(pairs)
    seconds = window_seconds(window)
    url = url_of(source)
    return Batch(
        id=batch_id or new_batch_id(),
        input=url,
        output=url_of(output),
        created_at=now,
        expires_at=now + seconds,
        completion_window=window,
        endpoint=endpoint,
        model=model,
        format=_format_of(url) if rows is not None else FileFormat.OPENAI,
        rows=rows,
        tenant=tenant,
        metadata=pairs,
        webhook=webhook,
        output_expires_after=output_expires_after,
        input_file_id=input_file_id or url,
        traceparent=current_traceparent(),
    )


def window_seconds(window: str) -> int:
    """Of "24h", "30m" and the like. Raises InvalidRequest."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", window)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= MAX_WINDOW:
        raise InvalidRequest(
            f'completion_window is a time like "24h", at most 7d, not {window[:40]!r}', param="completion_window"
        )
    return seconds


def _format_of(url: str) -> FileFormat:
    suffix = "." + url.rpartition(".")[2].lower()
    if suffix not in _SUFFIXES:
        raise InvalidRequest(f"the name of a table ends in {', '.join(_SUFFIXES)}; {url} does not", param="input")
    return _SUFFIXES[suffix]


def _check_metadata(pairs: dict[str, str]) -> None:
    if len(pairs) > MAX_METADATA_PAIRS or any(
        not isinstance(value, str) or not 0 < len(key) <= MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE
        for key, value in pairs.items()
    ):
        raise InvalidRequest(
            f"metadata takes {MAX_METADATA_PAIRS} pairs of strings, keys of 1 to {MAX_METADATA_KEY} characters and "
            f"values of at most {MAX_METADATA_VALUE}",
            param="metadata",
        )
