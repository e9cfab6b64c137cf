"""The connections of one gateway: how many there may be, and files enough for them."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from .settings import GatewaySettings

if TYPE_CHECKING:
    from .http_protocol import GatewayProtocol

#: Connections at once that are told that there are too many; others are closed without a word.
_TURNED_AWAY = 128
#: Files besides clients' connections: Redis, the listener, logs, names.
_OTHER_FILES = 256


class Connections:
    """Counts them, and ends those that take too long."""

    def __init__(self, settings: GatewaySettings):
        self.settings = settings
        self.limit = settings.max_connections
        self._open: set[GatewayProtocol] = set()
        self._turned_away: set[GatewayProtocol] = set()

    @property
    def open(self) -> int:
        """How many are served."""
        return len(self._open)

    def admit(self, connection: GatewayProtocol) -> bool:
        """Whether there is room for one more; without any for a refusal it is closed."""
        if len(self._open) < self.limit:
            self._open.add(connection)
            return True
        if len(self._turned_away) >= _TURNED_AWAY:
            connection.transport.abort()
        self._turned_away.add(connection)
        return False

    def leave(self, connection: GatewayProtocol) -> None:
        self._open.discard(connection)
        self._turned_away.discard(connection)

    def sweep(self, now: float) -> None:
        """`now` is of the loop's clock."""
        for connection in (*self._open, *self._turned_away):
            connection.sweep(now)


def allow_files(connections: int) -> int:
    """Raises this process's soft limit of open files, up to the hard one, for so many connections.

    Returns how many connections it suffices for.
    """
    wanted = connections + _TURNED_AWAY + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - _TURNED_AWAY - _OTHER_FILES))
