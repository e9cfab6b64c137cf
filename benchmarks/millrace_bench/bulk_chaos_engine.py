"""An engine without a model: an answer is the end of its prompt, made in a few steps of a set length.

Run by bulk_chaos_worker; it speaks the frames of a real engine, and resumes what it is given the tokens of.
"""

from __future__ import annotations

import argparse
import select
import socket
import struct
import time

import msgspec

from millrace_worker.config import EngineConfig
from millrace_worker.frames import AddSequence, Load, Ready, Started, StepOutput, pack, unpack_to_engine

#: Tokens of every answer, and steps in which it is made.
TOKENS, STEPS = 12, 3
MAX_MODEL_LEN, VOCABULARY = 4096, 1024
_BLOCK, _BLOCKS = 16, 8192


class EchoEngine:
    def __init__(self, sock: socket.socket, rows: int, seconds: float):
        self._socket, self._rows, self._seconds = sock, rows, seconds
        self._running: dict[int, tuple[AddSequence, int]] = {}
        self._waiting: dict[int, AddSequence] = {}
        self._steps = 0

    def serve(self) -> None:
        """Until the other side says so, or is gone."""
        while self._read(wait=not self._running and not self._waiting):
            # All that has come: the front sends a frame for each turn of its loop.
            while select.select([self._socket], [], [], 0)[0]:
                if not self._read(wait=False):
                    return
            if self._running or self._waiting:
                self._step()

    def _read(self, *, wait: bool) -> bool:
        """Takes a frame that the front sent, if there is one; False at the end."""
        if not wait and not select.select([self._socket], [], [], 0)[0]:
            return True
        head = self._socket.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return False
        frame = unpack_to_engine(self._socket.recv(struct.unpack("<I", head)[0], socket.MSG_WAITALL))
        self._waiting |= {sequence.seq_id: sequence for sequence in frame.add}
        for seq_id in frame.abort:
            self._waiting.pop(seq_id, None)
            self._running.pop(seq_id, None)
        return not frame.shutdown

    def _step(self) -> None:
        self._steps += 1
        started = []
        while self._waiting and len(self._running) < self._rows:
            seq_id = next(iter(self._waiting))
            sequence = self._waiting.pop(seq_id)
            self._running[seq_id] = sequence, len(sequence.generated)
            started.append(Started(seq_id, 0))
        time.sleep(self._seconds)
        tokens, finished = [], []
        for seq_id, (sequence, made) in list(self._running.items()):
            answer = sequence.prompt[-TOKENS:]
            more = answer[made : made + TOKENS // STEPS]
            tokens.append((seq_id, more))
            self._running[seq_id] = sequence, made + len(more)
            if made + len(more) >= len(answer):
                finished.append((seq_id, "length"))
                del self._running[seq_id]
        running = len(self._running)
        load = Load(running, len(self._waiting), _BLOCKS - running, _BLOCKS, running * _BLOCK, running)
        self._socket.sendall(pack(StepOutput(self._steps, tokens, finished, [], started, load)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--step", type=float, required=True)
    args = parser.parse_args()
    sock = socket.socket(fileno=args.fd)
    (length,) = struct.unpack("<I", sock.recv(4, socket.MSG_WAITALL))
    msgspec.msgpack.decode(sock.recv(length, socket.MSG_WAITALL), type=EngineConfig)
    sock.sendall(pack(Ready("nothing", MAX_MODEL_LEN, args.rows, _BLOCK, _BLOCKS, VOCABULARY)))
    EchoEngine(sock, args.rows, args.step).serve()


if __name__ == "__main__":
    main()
