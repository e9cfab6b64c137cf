"""The examples as modules, and the servers that run them."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import uvicorn
from werkzeug.serving import make_server

from millrace.gateway.server import listen, url_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Django imports the module of its URLs by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def asgi(app: Any) -> Iterator[str]:
    """Runs uvicorn in a thread, with the lifespan."""
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        yield url_of(sock)
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


@contextmanager
def wsgi(app: Any) -> Iterator[str]:
    """Runs werkzeug's server, with a thread for each request."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def until(condition: Callable[[], object]) -> None:
    """Returns once it is so."""
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)
