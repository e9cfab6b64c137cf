"""The engine process: `python -m millrace_worker.engine --fd N`, started by the front with one end of a socketpair."""

from __future__ import annotations

import argparse
import signal
import socket
import sys

import msgspec
import torch

from millrace_worker import logs
from millrace_worker.config import EngineConfig, WorkerConfig
from millrace_worker.errors import ConfigError, ModelError
from millrace_worker.frames import StartFailed, pack

from . import garbage
from .engine import Engine
from .link import FrontLink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m millrace_worker.engine")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the front")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="auto")
    arguments = parser.parse_args()
    logs.configure(WorkerConfig(log_level=arguments.log_level, log_format=arguments.log_format))
    link = FrontLink(socket.socket(fileno=arguments.fd))
    # Ctrl-C reaches the whole process group; the front drains and then tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    body = link.receive_body()
    if body is None:
        return 0
    try:
        engine = Engine(msgspec.msgpack.decode(body, type=EngineConfig))
    except (ConfigError, ModelError, torch.cuda.OutOfMemoryError) as e:
        link.send(pack(StartFailed(str(e).splitlines()[0])))
        return 1
    garbage.settle()
    link.send(pack(engine.ready))
    serve(engine, link)
    engine.close()
    return 0


def serve(engine: Engine, link: FrontLink) -> None:
    """Steps while there is work; waits on the socket, and reports, while there is none; ends with the front."""
    while True:
        for frame in link.receive(timeout=engine.pause()):
            if frame is None or frame.shutdown:
                return
            for pin_id in frame.unpin:
                engine.unpin(pin_id)
            for prefix in frame.pin:
                engine.pin(prefix)
            for seq_id in frame.abort:
                engine.abort(seq_id)
            for new in frame.add:
                engine.add(new)
        output = engine.advance() if engine.has_work else engine.report()
        if output is not None:
            link.send(pack(output))
        engine.tend()


if __name__ == "__main__":
    sys.exit(main())
