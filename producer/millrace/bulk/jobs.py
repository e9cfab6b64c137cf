"""The jobs of one batch, many a round trip: made, looked for, ended and forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from millrace.async_client import AsyncClient
from millrace.connection import Connection
from millrace.errors import ResultUnavailable
from millrace.submission import Submission
from millrace_schemas import TERMINAL, JobNotFound, Lane, QueueKeys, Request, Result, decode, queue_of
from millrace_schemas.batch import Batch

from .answers import fields_of, line_job_id
from .rows import RESPONSES, Row

#: Jobs of one round trip.
_CHUNK = 256


class BatchJobs:
    def __init__(self, client: AsyncClient, connection: Connection, batch: Batch):
        self._connection = connection
        self._client = client.for_tenant(batch.tenant, sees_all=True) if batch.tenant else client
        self._batch = batch
        self._queue = queue_of(batch.model)
        self._keys = QueueKeys(self._queue)
        #: Why the result of a job that has ended cannot be had; None: there is no such job.
        self.problem: str | None = None

    def id(self, number: int) -> str:
        return line_job_id(self._batch, self._queue, number)

    async def prepare(self, row: Row, job_id: str) -> Submission:
        """The checked job of a row. Raises InvalidRequest, UnknownModel, ApiError."""
        fields = fields_of(row)
        # A worker need not start what nobody waits for any more.
        fields |= {"lane": Lane.BATCH, "deadline": self._batch.expires_at}
        return await self._client._prepare(fields, job_id)

    async def submit(self, submissions: Sequence[Submission]) -> None:
        """Those that are there already stay as they are. Raises UnknownModel, QueueUnavailable."""
        await self._client._enqueue(submissions)

    async def results(self, ids: Sequence[str]) -> list[tuple[str, Result, Request | None]]:
        """Of those that have one; for /v1/responses with what was asked. `problem` tells of what cannot be read."""
        found: list[tuple[str, Result, Request | None]] = []
        self.problem = None
        for chunk in _chunks(ids):
            (replies,) = await self._connection.run(("MGET", *(self._keys.result(job_id) for job_id in chunk)))
            there = [(job_id, decode(data, Result)) for job_id, data in zip(chunk, replies, strict=True) if data]
            if any(result.location for _, result in there):
                there = [pair for pair in await asyncio.gather(*(self._load(*pair) for pair in there)) if pair]
            requests: list[Request | None] = [None] * len(there)
            if there and self._batch.endpoint == RESPONSES:
                asked = (("HGET", self._keys.job(job_id), "request") for job_id, _ in there)
                requests = [decode(data, Request) if data else None for data in await self._connection.run(*asked)]
            found += [
                (*pair, request)
                for pair, request in zip(there, requests, strict=True)
                # Without what was asked there is no Response; such a job counts as lost.
                if request is not None or self._batch.endpoint != RESPONSES
            ]
        return found

    async def lost(self, ids: Sequence[str]) -> list[str]:
        """Those that are not there, or ended so long ago that their result is gone. They may be made anew."""
        gone: list[str] = []
        for chunk in _chunks(ids):
            commands = [
                command
                for job_id in chunk
                # State first: a job that ends between the two reads then shows its result.
                for command in (("HGET", self._keys.job(job_id), "state"), ("EXISTS", self._keys.result(job_id)))
            ]
            replies = await self._connection.run(*commands)
            for job_id, state, there in zip(chunk, replies[::2], replies[1::2], strict=True):
                if state is None:
                    found = there and self._batch.endpoint != RESPONSES
                else:
                    found = there or state.decode() not in TERMINAL
                if not found:
                    gone.append(job_id)
        await self.forget(gone)
        return gone

    async def cancel(self, ids: Sequence[str]) -> None:
        for chunk in _chunks(ids):
            await asyncio.gather(*(self._cancel(job_id) for job_id in chunk))

    async def forget(self, ids: Sequence[str]) -> None:
        """Of no use to anybody: their answers are in a part. A million of them would fill Redis for a day."""
        for chunk in _chunks(ids):
            keys = (key for job_id in chunk for key in (self._keys.job(job_id), self._keys.result(job_id)))
            # Of one that has not ended, nobody could tell any more whose it was.
            counted = [("ZREM", self._keys.unfinished(self._batch.tenant), *chunk)] if self._batch.tenant else []
            await self._connection.run(("UNLINK", *keys), *counted)

    async def _load(self, job_id: str, result: Result) -> tuple[str, Result] | None:
        """With its choices, wherever the worker has put them."""
        try:
            return job_id, await self._client._backend.load(result)
        except ResultUnavailable as e:
            self.problem = str(e)
            return None

    async def _cancel(self, job_id: str) -> None:
        try:
            await self._client.cancel(job_id)
        except JobNotFound:
            return


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[at : at + _CHUNK] for at in range(0, len(ids), _CHUNK)]
