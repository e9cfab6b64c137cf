"""A gateway as a process, with webhook settings that tests choose:  run_gateway.py REDIS_URL name=number..."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from millrace import AsyncClient
from millrace.connection import Connection
from millrace.gateway.server import listen, make_server, url_of
from millrace.gateway.webhook_addresses import Allowed
from millrace.gateway.webhook_dispatcher import Dispatcher
from millrace.gateway.webhook_settings import WebhookSettings


async def main(redis_url: str, chosen: list[str]) -> None:
    numbers: dict[str, Any] = {name: float(value) for name, _, value in (text.partition("=") for text in chosen)}
    settings = WebhookSettings(allowed=Allowed.of(["127.0.0.1"]), **numbers)
    with listen("127.0.0.1", 0) as sock:
        async with AsyncClient(redis_url) as client:
            server = make_server(client, dispatcher=Dispatcher(Connection(redis_url), settings))
            print(url_of(sock), flush=True)
            await server.serve([sock])


asyncio.run(main(sys.argv[1], sys.argv[2:]))
