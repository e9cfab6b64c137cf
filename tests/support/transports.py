"""Ways to a Redis other than plain TCP: a server behind a Unix socket, and TLS before one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from millrace.embedded import EmbeddedRedis, find_redis_server

#: Key and certificate of localhost and 127.0.0.1, signed by themselves.
CERTIFICATE = Path(__file__).with_name("loopback.pem")


@contextlib.contextmanager
def redis_on_a_socket() -> Iterator[str]:
    """The URL of a server of its own that has no port."""
    # Not pytest's directory: the path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="millrace-") as directory:
        path = f"{directory}/redis.sock"
        command = [str(find_redis_server()), "--port", "0", "--unixsocket", path, "--dir", directory, "--save", ""]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(unix_socket_path=path) as client:
                _wait_for(client)
            yield f"unix://{path}?db=1"
        finally:
            server.terminate()
            server.wait(10)


@contextlib.contextmanager
def redis_behind_tls(server: EmbeddedRedis) -> Iterator[str]:
    """The URL of a TLS endpoint whose connections go on to `server`."""
    loop = asyncio.new_event_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(_pump(reader, inner[1]), _pump(inner[0], writer))

    listener = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    port = listener.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"rediss://localhost:{port}/1?ssl_ca_certs={CERTIFICATE}"
    finally:
        asyncio.run_coroutine_threadsafe(_end(listener), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _end(listener: asyncio.Server) -> None:
    listener.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _wait_for(client: redis.Redis) -> None:
    limit = time.monotonic() + 20
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            assert time.monotonic() < limit, "the server does not answer"
            time.sleep(0.05)
