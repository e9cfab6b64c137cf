"""An engine without a model: each answer is its prompt, whole, in the step after it came. Run by queue_peers.millrace.

It speaks the frames of a real engine, over a real engine's end of the socket.
"""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from millrace_bench.queue_peers.program import first_job
from millrace_worker.engine.link import FrontLink
from millrace_worker.frames import AddSequence, Load, Ready, Started, StepOutput, pack

MAX_MODEL_LEN, VOCABULARY = 4096, 256
_BLOCK, _BLOCKS = 16, 65_536


def serve(link: FrontLink) -> None:
    """Until the front says so, or is gone."""
    steps = 0
    while True:
        added: list[AddSequence] = []
        # What is aborted has been answered already.
        for frame in link.receive(timeout=None):
            if frame is None or frame.shutdown:
                return
            added += frame.add
        if not added:
            continue
        first_job()
        steps += 1
        link.send(
            pack(
                StepOutput(
                    step=steps,
                    tokens=[(sequence.seq_id, sequence.prompt) for sequence in added],
                    finished=[(sequence.seq_id, "length") for sequence in added],
                    started=[Started(sequence.seq_id, 0) for sequence in added],
                    load=Load(free_blocks=_BLOCKS, total_blocks=_BLOCKS),
                    sequences=len(added),
                    batched_tokens=sum(len(sequence.prompt) for sequence in added),
                )
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--fd", type=int, required=True)
    args = parser.parse_args()
    first_job.watch(Path(args.directory))
    link = FrontLink(socket.socket(fileno=args.fd))
    # The engine's configuration, of which nothing matters here.
    if link.receive_body() is not None:
        link.send(pack(Ready("nothing", MAX_MODEL_LEN, args.rows, _BLOCK, _BLOCKS, VOCABULARY)))
        serve(link)


if __name__ == "__main__":
    main()
