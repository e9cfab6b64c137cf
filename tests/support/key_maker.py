"""API keys for tests that are no coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from millrace.api_keys import KeyStore
from millrace.connection import Connection


class KeyMaker:
    """Makes keys in the Redis at `url`, and hands out the store's other methods, too."""

    def __init__(self, url: str):
        self._url = url

    def __call__(self, name: str = "k", **fields: Any) -> str:
        """The text of a new key."""
        return str(self.run(lambda store: store.create(name, **fields))[1])

    def headers(self, **fields: Any) -> dict[str, str]:
        """Those of a request with a new key."""
        return {"authorization": f"Bearer {self(**fields)}"}

    def revoke(self, key: str) -> None:
        self.run(lambda store: store.revoke(key.split("_")[1]))

    def run(self, do: Callable[[KeyStore], Any]) -> Any:
        async def call() -> Any:
            connection = Connection(self._url)
            try:
                return await do(KeyStore(connection))
            finally:
                await connection.close()

        return asyncio.run(call())
