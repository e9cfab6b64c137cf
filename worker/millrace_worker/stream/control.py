"""Listens to the queue's control channel: "cancel <id>", "reclaim", "pins". What is missed here, a beat finds later."""

from __future__ import annotations

from collections.abc import Callable

import redis
import redis.asyncio
import structlog

from millrace_schemas import QueueKeys

from .connection import Backoff

log = structlog.get_logger(__name__)

#: Seconds of one wait for a message; the client's socket timeout must be longer.
WAIT = 5.0

CANCEL = "cancel "
RECLAIM = "reclaim"
PINS = "pins"


async def listen(
    client: redis.asyncio.Redis,
    keys: QueueKeys,
    on_cancel: Callable[[str], None],
    on_reclaim: Callable[[], None],
    on_pins: Callable[[], None],
) -> None:
    """Runs until cancelled; subscribes again, with pauses, whenever Redis was away."""
    backoff = Backoff(0.1, 5.0)
    while True:
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        try:
            await pubsub.subscribe(keys.control)
            # A hand-over may have happened while nobody listened.
            on_reclaim()
            on_pins()
            while True:
                message = await pubsub.get_message(timeout=WAIT)
                backoff.reset()
                if message is not None:
                    _dispatch(bytes(message["data"]).decode(errors="replace"), on_cancel, on_reclaim, on_pins)
        except (redis.RedisError, OSError) as e:
            log.debug("the control channel is away", error=str(e))
            await backoff.sleep()
        finally:
            await pubsub.aclose()


def _dispatch(
    text: str, on_cancel: Callable[[str], None], on_reclaim: Callable[[], None], on_pins: Callable[[], None]
) -> None:
    if text.startswith(CANCEL):
        on_cancel(text.removeprefix(CANCEL))
    elif text == RECLAIM:
        on_reclaim()
    elif text == PINS:
        on_pins()
