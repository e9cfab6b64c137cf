"""The webhook of a batch that is about to end, in the outbox that gateways deliver from."""

from __future__ import annotations

from millrace.connection import Connection
from millrace_schemas import QueueKeys
from millrace_schemas.batch import Batch, BatchStatus
from millrace_schemas.keys import BULK_QUEUE, WEBHOOK_QUEUES

from .store import KEEP


async def announce(connection: Connection, batch: Batch, status: BatchStatus, now: float) -> None:
    """Has a batch's receiver told of its end, which whoever calls this is about to write; `now` is the time of it.

    Before the end and not after it, so that a death in between loses no webhook. Nor does it send a false one: gateways
    tell what the batch's record says, once that has ended. Calling it again changes nothing. Raises QueueUnavailable.
    """
    if not batch.webhook:
        return
    keys = QueueKeys(BULK_QUEUE)
    await connection.run(("SADD", WEBHOOK_QUEUES, BULK_QUEUE))
    await connection.script(
        "webhooks_announce",
        [keys.webhooks, keys.job(batch.id)],
        [batch.id, status, batch.webhook, batch.tenant, now, KEEP],
    )
