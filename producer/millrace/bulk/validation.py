"""One pass over a file before anything of it runs: structure, names, endpoint and model of every line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from millrace_schemas import InvalidRequest, queue_of
from millrace_schemas.batch import MAX_ERRORS, Batch, BatchError, Shard

from .lines import RawLine
from .rows import ENDPOINTS, BadRow, RowReader
from .settings import BulkSettings
from .storage import Input

#: Lines between two calls of `alive`.
_BEAT = 5000


@dataclass(frozen=True, slots=True)
class Finding:
    """What a file is; with errors, why it cannot be worked off."""

    total: int
    endpoint: str
    model: str
    errors: tuple[BatchError, ...]
    shards: tuple[Shard, ...] = ()


def validate(batch: Batch, source: Input, settings: BulkSettings, alive: Callable[[float], None]) -> Finding:
    """Reads all of it, or until there are MAX_ERRORS. `alive` is called now and then with the share that was read; what
    it raises ends the pass.

    Raises StorageError, InputChanged.
    """
    check = _Check(batch)
    reader = RowReader(batch, source)
    shards = _Shards(settings.shard_rows if reader.counts_rows else settings.shard_bytes)
    max_lines = settings.max_lines
    errors: list[BatchError] = []
    total = 0
    try:
        for line in reader.lines():
            total += 1
            shards.pass_by(line)
            if total % _BEAT == 0:
                alive(line.offset / reader.extent)
            try:
                check.row(*reader.head(line), line.number)
            except BadRow as e:
                errors.append(e.error)
                if len(errors) == MAX_ERRORS:
                    break
            if total > max_lines:
                errors.append(BatchError("too_many_tasks", f"A file has at most {max_lines:,} requests.", line.number))
                break
    except BadRow as e:
        errors.append(e.error)
    if not total and not errors:
        errors.append(BatchError("empty_file", "The file has no requests."))
    return Finding(total, check.endpoint, check.model, tuple(errors), shards.up_to(reader.extent))


class _Shards:
    """Cuts the input at lines, about every `span`."""

    def __init__(self, span: int):
        self._span = span
        self._starts: list[tuple[int, int]] = []
        self._next = 0

    def pass_by(self, line: RawLine) -> None:
        if line.offset >= self._next or not self._starts:
            self._starts.append((line.offset, line.number))
            self._next = line.offset + self._span

    def up_to(self, extent: int) -> tuple[Shard, ...]:
        ends = [*(offset for offset, _ in self._starts[1:]), extent]
        return tuple(Shard(offset, end, number) for (offset, number), end in zip(self._starts, ends, strict=False))


class _Check:
    """What only all lines together can get wrong."""

    def __init__(self, batch: Batch):
        self.endpoint = batch.endpoint
        self.model = batch.model
        self._queue = ""
        #: 64 bits of each: names of a million lines in some 100 MB, and one false alarm in 40 million such files.
        self._seen: set[int] = set()

    def row(self, custom_id: str, url: str, model: str, number: int) -> None:
        digest = hash(custom_id)
        if digest in self._seen:
            message = f"The custom_id {custom_id[:80]!r} is that of an earlier line, too."
            raise BadRow(BatchError("duplicate_custom_id", message, number, "custom_id"))
        self._seen.add(digest)
        if url != self.endpoint:
            if self.endpoint:
                message = f"The url is {url[:80]!r}, and the batch's endpoint is {self.endpoint}."
                raise BadRow(BatchError("url_mismatch", message, number, "url"))
            if url not in ENDPOINTS:
                message = f"The url {url[:80]!r} is not one of {', '.join(ENDPOINTS)}."
                raise BadRow(BatchError("invalid_url", message, number, "url"))
            self.endpoint = url
        if model != self.model:
            if self.model:
                message = f"The model is {model[:80]!r}, and that of the lines before is {self.model!r}."
                raise BadRow(BatchError("model_mismatch", message, number, "body.model"))
            self.model = model
        if not self._queue:
            try:
                self._queue = queue_of(model)
            except InvalidRequest as e:
                raise BadRow(BatchError("model_not_found", str(e), number, "body.model")) from None
