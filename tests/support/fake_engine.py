"""An engine process without a model: speaks frames on --fd and generates tokens that anybody can predict.

The next token is (last * 31 + position) % 1000. Certain ids in a prompt do harm: POISON ends the process, HANG stops
it, BAD sends a refusal. It says that it reads the first block of four sequences once, where they share it. `--log`
notes every token made, as "first-prompt-id position" lines. Pinned prefixes are resident `--pin-delay` seconds after it
was told, never those with BAD; POISON and HANG do the same harm there.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import sys
import time
from collections import Counter

import msgspec

from millrace_worker.config import EngineConfig
from millrace_worker.frames import (
    AddSequence,
    Likely,
    Load,
    PinnedPrefix,
    PinState,
    Ready,
    Refusal,
    Started,
    StartFailed,
    StepOutput,
    pack,
    unpack_to_engine,
)

POISON, HANG, BAD = 666, 667, 668
VOCABULARY = 1024
BLOCK = 16


def next_token(last: int, position: int) -> int:
    return (last * 31 + position) % 1000


def expected_tokens(prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_token(ids[-1], len(ids)))
    return ids[len(prompt) :]


def likely_of(token: int, top: int) -> Likely:
    """What the fake says of a token: the same wherever it is. Fractions that float32 holds."""
    return Likely(-(token % 8) / 8 - 0.5, [(token + i) % 1000 for i in range(top)], [-0.25 - i / 4 for i in range(top)])


class Engine:
    def __init__(self, sock: socket.socket, args: argparse.Namespace):
        self._socket = sock
        self._args = args
        self._sequences: dict[int, tuple[AddSequence, list[int]]] = {}
        self._waiting: list[AddSequence] = []
        self._step = 0
        #: With the time at which each is resident.
        self._pins: dict[str, tuple[PinnedPrefix, float]] = {}
        self._hits: Counter[str] = Counter()
        self._pins_told: list[PinState] = []
        self._log = os.open(args.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if args.log else None

    def read(self, *, wait: bool) -> bool:
        """Takes what the front sent; False at the end."""
        self._socket.setblocking(wait)
        try:
            head = self._socket.recv(4, socket.MSG_WAITALL)
        except BlockingIOError:
            return True
        self._socket.setblocking(True)
        if len(head) < 4:
            return False
        frame = unpack_to_engine(self._socket.recv(struct.unpack("<I", head)[0], socket.MSG_WAITALL))
        self._waiting += frame.add
        for prefix in frame.pin:
            if POISON in prefix.tokens:
                os._exit(9)
            if HANG in prefix.tokens:
                time.sleep(3600)
            self._pins.setdefault(prefix.pin_id, (prefix, time.monotonic() + self._args.pin_delay))
        for pin_id in frame.unpin:
            self._pins.pop(pin_id, None)
        for seq_id in frame.abort:
            self._sequences.pop(seq_id, None)
            self._waiting = [s for s in self._waiting if s.seq_id != seq_id]
        return not frame.shutdown

    def step(self) -> None:
        self._step += 1
        started, refused = [], []
        while self._waiting and len(self._sequences) < self._args.rows:
            sequence = self._waiting.pop(0)
            if POISON in sequence.prompt:
                os._exit(9)
            if HANG in sequence.prompt:
                time.sleep(3600)
            if BAD in sequence.prompt:
                refused.append(Refusal(sequence.seq_id, "kv_capacity_exceeded", "never fits"))
                continue
            self._sequences[sequence.seq_id] = (sequence, list(sequence.generated))
            started.append(Started(sequence.seq_id, self._cached(sequence)))
        time.sleep(self._args.step)
        tokens, finished, logprobs = [], [], {}
        for seq_id, (sequence, generated) in list(self._sequences.items()):
            ids = sequence.prompt + generated
            token = next_token(ids[-1], len(ids))
            self._note(sequence.prompt[0], len(generated))
            generated.append(token)
            tokens.append((seq_id, [token]))
            if sequence.params.logprobs is not None:
                logprobs[seq_id] = [likely_of(token, sequence.params.logprobs)]
            if token in sequence.params.stop_token_ids and len(generated) > sequence.params.min_tokens:
                finished.append((seq_id, "stop"))
            elif len(generated) >= sequence.params.max_tokens:
                finished.append((seq_id, "length"))
        groups = self._groups()
        for seq_id, _ in finished:
            del self._sequences[seq_id]
        running = len(self._sequences)
        load = Load(running, len(self._waiting), 1000 - running, 1000, running * BLOCK, running)
        output = StepOutput(
            *(self._step, tokens, finished, refused, started, load),
            sequences=len(tokens),
            logprobs=logprobs,
            shared_read=BLOCK * len(groups),
            shared_saved=BLOCK * sum(members - 1 for members in groups),
            pins=self._pin_states(),
        )
        self._socket.sendall(pack(output))

    def _cached(self, sequence: AddSequence) -> int:
        """Tokens of the longest pinned prefix that it begins with."""
        found = [
            prefix
            for prefix, at in self._pins.values()
            if at <= time.monotonic()
            and prefix.cache_salt == sequence.params.cache_salt
            and sequence.prompt[: len(prefix.tokens)] == prefix.tokens
        ]
        self._hits.update(prefix.pin_id for prefix in found)
        return max((len(prefix.tokens) // BLOCK * BLOCK for prefix in found), default=0)

    def _pin_states(self) -> list[PinState] | None:
        states = []
        for pin_id, (prefix, at) in self._pins.items():
            blocks = len(prefix.tokens) // BLOCK
            problem = "no_room" if BAD in prefix.tokens else ""
            tier = "gpu" if at <= time.monotonic() and not problem else ""
            states.append(PinState(pin_id, tier, blocks, blocks * BLOCK * 100, self._hits[pin_id], problem))
        if states == self._pins_told:
            return None
        self._pins_told = states
        return states

    def _groups(self) -> list[int]:
        """How many sequences begin with the same block, of each beginning that four have."""
        heads = Counter(tuple(sequence.prompt[:BLOCK]) for sequence, _ in self._sequences.values())
        return [members for head, members in heads.items() if len(head) == BLOCK and members >= 4]

    def serve(self) -> None:
        while self.read(wait=not self._sequences and not self._waiting and not self._pins_due()):
            if self._sequences or self._waiting:
                self.step()
            elif (states := self._pin_states()) is not None:
                self._socket.sendall(pack(StepOutput(self._step, pins=states)))
            elif self._pins_due():
                time.sleep(self._args.step)

    def _pins_due(self) -> bool:
        """Whether pins will be resident, or went away, without a frame that says so."""
        waits = any(at > time.monotonic() for _, at in self._pins.values())
        return waits or {state.pin_id for state in self._pins_told if state.tier or state.problem} != set(self._pins)

    def _note(self, first: int, position: int) -> None:
        if self._log is not None:
            os.write(self._log, f"{first} {position}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--step", type=float, default=0.002)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--log", default="")
    parser.add_argument("--fail", default="")
    parser.add_argument("--pin-delay", type=float, default=0.0)
    parser.add_argument("--load", type=float, default=0.0)
    args = parser.parse_args()
    sock = socket.socket(fileno=args.fd)
    (length,) = struct.unpack("<I", sock.recv(4, socket.MSG_WAITALL))
    msgspec.msgpack.decode(sock.recv(length, socket.MSG_WAITALL), type=EngineConfig)
    time.sleep(args.load)
    if args.fail:
        sock.sendall(pack(StartFailed(args.fail)))
        sys.exit(1)
    sock.sendall(pack(Ready("fake", 4096, args.rows, BLOCK, 1000, VOCABULARY)))
    Engine(sock, args).serve()


if __name__ == "__main__":
    main()
