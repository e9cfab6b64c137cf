from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import gc
from millrace_worker.engine import garbage

class Node:
    pass

def cycle():
    node = Node()
    node.me = node

lasting = [[] for _ in range(50_000)]
garbage.settle()
assert gc.get_freeze_count() > 50_000
found = []
gc.callbacks.append(lambda phase, info: found.append(info["collected"]) if phase == "stop" else None)
step = [[] for _ in range(20_000)]
del step
assert not found, "a step's own objects led to a collection"
for _ in range(150_000):
    cycle()
assert found and found[0] > 90_000, "garbage in cycles is never collected"
"""


def test_steps_lead_to_no_collection_and_cycles_still_go() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
