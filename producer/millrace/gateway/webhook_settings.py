"""How webhooks are delivered."""

from __future__ import annotations

from dataclasses import dataclass, field

from .webhook_addresses import Allowed

_MINUTE, _HOUR = 60.0, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """Times are seconds."""

    #: What may be called besides public addresses.
    allowed: Allowed = field(default_factory=Allowed)
    #: Pauses between calls, as the Standard Webhooks specification has them: ten calls in a bit more than three days.
    delays: tuple[float, ...] = (
        *(5.0, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR),
    )
    #: Each pause is longer by up to this share of it, so that what failed together does not come back together.
    jitter: float = 0.2
    #: Longest pause that a receiver may ask for with Retry-After.
    max_retry_after: float = 24 * _HOUR
    #: From the look-up of the name to the answer's status.
    timeout: float = 15.0
    #: For which a webhook belongs to the gateway that took it: reading the job, the call, and the writing down.
    lease: float = 45.0
    #: Calls at once: of this gateway, and of one receiver.
    max_calls: int = 64
    max_calls_per_receiver: int = 8
    #: Between looks at an outbox from which nothing was heard and in which nothing is due.
    poll: float = 2.0
    #: That calls under way get when the gateway stops; others are given back.
    grace: float = 3.0
