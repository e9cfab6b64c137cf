#!/usr/bin/env python
"""Whether Redis knows an RQ worker of this container that lives; exit code 1 when not."""

import os
import socket
import sys
from pathlib import Path

import redis
from rq import Worker

connection = redis.Redis.from_url(os.environ["MILLRACE_REDIS_URL"], socket_timeout=5)
# A container that was killed has left an entry of the same host.
here = [worker for worker in Worker.all(connection) if worker.hostname == socket.gethostname()]
sys.exit(not any(Path(f"/proc/{worker.pid}").exists() for worker in here))
