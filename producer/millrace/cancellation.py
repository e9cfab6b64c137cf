"""Cancelling one job: the result of one that never ran is written here, that of a running one by its worker."""

from __future__ import annotations

from millrace_schemas import (
    DecodeError,
    ErrorCode,
    ErrorInfo,
    Finished,
    JobNotFound,
    JobState,
    QueueKeys,
    Request,
    Result,
    Timings,
    decode,
    encode,
    queue_of_job,
)

from .connection import Connection

#: Seconds that a cancelled job's result and record are kept.
RESULT_TTL = 86_400


async def cancel_job(connection: Connection, job_id: str) -> JobState:
    """Runs scripts/cancel.lua; see AsyncClient.cancel."""
    keys = QueueKeys(queue_of_job(job_id))
    fields = ["request", "attempts", "created_at"]
    while True:
        ((data, attempts, created),) = await connection.run(("HMGET", keys.job(job_id), *fields))
        if data is None or attempts is None:
            raise JobNotFound(f"there is no job {job_id}, or its time to live is over")
        age = max(0.0, await connection.now() - float(created or 0))
        result = _cancelled(job_id, keys.queue, data, int(attempts), age)
        reply = await connection.script(
            "cancel",
            [keys.job(job_id), keys.result(job_id), keys.tokens(job_id), keys.events(job_id), keys.delayed,
             keys.deadlines, keys.webhooks, keys.unfinished_prefix],
            [job_id, attempts, encode(result), encode(Finished(result)), RESULT_TTL, keys.done(job_id), keys.control],
        )  # fmt: skip
        answer = reply.decode()
        if answer == "missing":
            raise JobNotFound(f"there is no job {job_id}, or its time to live is over")
        if answer == "requested":
            return JobState.IN_PROGRESS
        if answer != "changed":
            return JobState(answer)


def _cancelled(job_id: str, queue: str, data: bytes, attempts: int, age: float) -> Result:
    try:
        request = decode(data, Request)
        model, metadata = request.model, request.metadata
    except DecodeError:
        # Another release's request: it can be cancelled all the same.
        model, metadata = queue, {}
    return cancelled_result(job_id, model, metadata, attempts, age)


def cancelled_result(job_id: str, model: str, metadata: dict[str, str], attempts: int, age: float) -> Result:
    """The end of a job that waited for `age` seconds."""
    return Result(
        id=job_id,
        model=model,
        state=JobState.CANCELLED,
        error=ErrorInfo(ErrorCode.CANCELLED, "cancelled while it waited in the queue"),
        timings=Timings(queued=age, total=age),
        attempts=attempts,
        metadata=metadata,
    )
