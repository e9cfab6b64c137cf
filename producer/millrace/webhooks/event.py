"""What a webhook says: that a job or a batch has ended, and how; the answers themselves are to be fetched."""

from __future__ import annotations

from typing import Any

import msgspec

_RESPONSE = "resp_"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a webhook, in the shape of OpenAI's events. Unknown fields are skipped: it may grow."""

    #: The same in every call about one job or batch: whoever has seen it has seen this event.
    id: str
    #: `job.` and `completed`, `failed`, `cancelled` or `expired`; for what was made by POST /v1/responses: `response.`
    #: and `completed`, `incomplete`, `failed` or `cancelled`; of a batch: `batch.` and `completed`, `failed`, `expired`
    #: or `cancelled`.
    type: str
    #: When it ended, Unix seconds.
    created_at: int
    #: `id`; that of a job also has model, state, metadata, error (code and message, or None) and usage.
    data: dict[str, Any]
    object: str = "event"

    @property
    def job_id(self) -> str:
        """The job, as `client.result` takes it; of a batch, the id of the batch."""
        return str(self.data["id"]).removeprefix(_RESPONSE)
