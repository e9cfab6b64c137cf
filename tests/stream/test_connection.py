from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from millrace_schemas import Lane, QueueUnavailable
from millrace_worker.stream.connection import (
    Backoff,
    Refused,
    check_server,
    connect,
    connect_blocking,
    connect_sync,
    is_transient,
    place,
    unavailable,
)

URL = "redis://user:secret@host:7000/3"


class Server:
    """Answers INFO."""

    def __init__(self, version: str):
        self._version = version

    async def info(self, section: str) -> dict[str, Any]:
        return {"redis_version": self._version, "uptime_in_seconds": 7}


@pytest.mark.parametrize(("version", "ok"), [("5.0.14", False), ("6.0.16", False), ("6.2.0", True), ("8.2.1", True)])
def test_versions(version: str, ok: bool) -> None:
    if ok:
        assert asyncio.run(check_server(Server(version), URL)) == 7.0  # type: ignore[arg-type]
        return
    with pytest.raises(QueueUnavailable, match=f"^Redis at host:7000/3 is version {version}; Millrace needs 6.2"):
        asyncio.run(check_server(Server(version), URL))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            redis.ConnectionError("Error 111 connecting"),
            QueueUnavailable,
            "cannot reach Redis at host:7000/3: Error 111",
        ),
        (redis.TimeoutError(), QueueUnavailable, "cannot reach Redis at host:7000/3: TimeoutError"),
        (redis.AuthenticationError("invalid password"), Refused, "refuses the user or password"),
        (redis.ResponseError("WRONGPASS bad"), Refused, "refuses the user or password"),
        (redis.exceptions.NoPermissionError("NOPERM eval"), Refused, "lets this user do too little"),
        (redis.ResponseError("ERR odd"), QueueUnavailable, "answers with an error: ERR odd"),
    ],
)
def test_one_line_without_secrets(error: Exception, kind: type[QueueUnavailable], words: str) -> None:
    translated = unavailable(error, URL)
    assert type(translated) is kind
    assert words in str(translated)
    assert "secret" not in str(translated)
    assert "\n" not in str(translated)


def test_places() -> None:
    assert place("redis://localhost:6379/0") == "localhost:6379/0"
    assert place("rediss://u:p@h/1") == "h:6379/1"
    assert place("unix://u:p@/run/redis.sock?db=1&password=secret") == "/run/redis.sock"


def test_what_waiting_cures() -> None:
    assert is_transient(redis.ConnectionError("gone"))
    assert is_transient(redis.ResponseError("ERR Error running script: -READONLY You can't write"))
    # Since Redis 7 a script's error is what the command met, and redis-py takes a code that it knows out of it.
    assert is_transient(redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."))
    assert is_transient(redis.exceptions.MasterDownError("Link with MASTER is down"))
    assert is_transient(redis.exceptions.ClusterDownError("The cluster is down"))
    assert is_transient(redis.exceptions.TryAgainError("Multiple keys request during rehashing of slot"))
    assert not is_transient(redis.AuthenticationError("bad"))
    assert not is_transient(redis.ResponseError("WRONGTYPE Operation"))


def test_no_hidden_retries_and_room_for_the_block() -> None:
    async def options() -> list[dict[str, Any]]:
        clients = (connect(URL), connect_blocking(URL, 7.0))
        return [client.connection_pool.connection_kwargs for client in clients]

    short, blocking = asyncio.run(options())
    thread = connect_sync(URL).connection_pool.connection_kwargs
    for kwargs in (short, blocking, thread):
        assert kwargs["retry"].get_retries() == 0
        assert kwargs["protocol"] == 2
    assert short["socket_timeout"] == thread["socket_timeout"] == 5.0
    assert blocking["socket_timeout"] >= 7.0 + 3.0


@pytest.mark.parametrize("url", ["redis://localhost", "rediss://localhost", "unix:///run/redis.sock?db=1"])
def test_commands_are_packed_as_redis_py_does(url: str) -> None:
    """By hiredis, whatever the transport, and what hiredis does not take by redis-py."""

    async def packed() -> None:
        connection: Any = connect(url).connection_pool.make_connection()
        plain = type(connection).__mro__[2]
        commands: list[tuple[Any, ...]] = [
            ("EVALSHA", "0" * 40, 1, "k\u00e9y", b"\x00\xff", Lane.BATCH, -1, 1.5, 1e300, 2**70, ""),
            ("CLIENT ID",),
            ("SET", "k", memoryview(b"v")),
            ("SET", "k", b"v" * 100_000),
        ]
        for command in commands:
            assert b"".join(connection.pack_command(*command)) == b"".join(plain.pack_command(connection, *command))
        together = b"".join(connection.pack_commands(commands))
        assert together == b"".join(plain.pack_commands(connection, commands))
        with pytest.raises(redis.DataError):
            connection.pack_command("SET", "k", None)

    asyncio.run(packed())


def test_backoff_grows_to_a_limit_and_starts_again() -> None:
    backoff = Backoff(0.1, 1.0)
    pauses = [backoff.next() for _ in range(10)]
    assert 0.05 <= pauses[0] <= 0.1
    assert all(0.5 <= pause <= 1.0 for pause in pauses[5:])
    backoff.reset()
    assert backoff.next() <= 0.1
