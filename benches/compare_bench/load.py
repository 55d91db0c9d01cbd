"""One load generator: `python load.py SETTINGS_JSON`; a line on standard input has it run for so long.

It knows the size of every value, so it counts bytes instead of parsing replies: a pipeline of requests goes
out on every connection, then each answer is read to its last byte. A value of the watched key begins with the
number of its write, whose place in the answer is known as well.
"""

import json
import random
import socket
import sys
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyheat.demo import profile

SALE_KEY: Final = b"sale:item"
SALE_BYTES: Final = 512
SALE_SHARE: Final = 0.6
PIPELINE: Final = 16
NUMBER_DIGITS: Final = 12
_CHUNKS: Final = 4000
_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True)
class Chunk:
    """A pipeline of requests, the size of its answer, and where in it the watched key's number is."""

    request: bytes
    answer_bytes: int
    number_at: int | None


@dataclass(frozen=True)
class Workload:
    """Keys, sizes of their values, and the order in which they are read."""

    keys: list[bytes]
    sizes: list[int]
    sequence: list[int]
    watched: int


def workload(name: str, seed: int = 1) -> Workload:
    """`trace`: a minute of Twitter's cluster 52; `sale`: the same, and one key takes most of the reads."""
    given = profile.load()
    keys, sizes, sequence = list(given.keys), list(given.sizes), list(given.sequence)
    if name == "sale":
        chooser = random.Random(seed)
        keys.append(SALE_KEY)
        sizes.append(SALE_BYTES)
        last = len(keys) - 1
        sequence = [last if chooser.random() < SALE_SHARE else index for index in sequence]
        return Workload(keys, sizes, sequence, last)
    counts: dict[int, int] = {}
    for index in sequence:
        counts[index] = counts.get(index, 0) + 1
    watched = max(counts, key=lambda index: (sizes[index] >= NUMBER_DIGITS, counts[index]))
    return Workload(keys, sizes, sequence, watched)


def value(size: int, number: int = 0) -> bytes:
    """A value of that size that begins with a number, as far as it fits."""
    return (b"%0*d" % (NUMBER_DIGITS, number)).ljust(size, b".")[:size]


def chunks(work: Workload, start: int) -> list[Chunk]:
    """Pipelines of the sequence, from somewhere in it."""
    made = []
    for first in range(start, start + _CHUNKS * PIPELINE, PIPELINE):
        request, size, at = b"", 0, None
        for place in range(first, first + PIPELINE):
            index = work.sequence[place % len(work.sequence)]
            key = work.keys[index]
            request += b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key)
            head = len(b"$%d\r\n" % work.sizes[index])
            if index == work.watched and at is None:
                at = size + head
            size += head + work.sizes[index] + 2
        made.append(Chunk(request, size, at))
    return made


class Generator:
    """All connections of one process."""

    def __init__(self, port: int, connections: int, made: list[Chunk]) -> None:
        self._chunks = made
        self._at = 0
        self._sockets = [
            socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) for _ in range(connections)
        ]
        for each in self._sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(max(chunk.answer_bytes for chunk in made))

    def run(self, seconds: float, noted: "array[int]") -> int:
        """Ask for so long; returns how many requests were answered, and notes start and number of reads."""
        until, requests = time.monotonic() + seconds, 0
        view = memoryview(self._buffer)
        while time.monotonic() < until:
            sent = []
            for each in self._sockets:
                chunk = self._chunks[self._at]
                self._at = (self._at + 1) % len(self._chunks)
                sent.append((each, chunk, time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
                each.sendall(chunk.request)
            for each, chunk, started in sent:
                _fill(each, view[: chunk.answer_bytes])
                if chunk.number_at is not None:
                    number = bytes(view[chunk.number_at : chunk.number_at + NUMBER_DIGITS])
                    noted.extend((started, int(number)))
                requests += PIPELINE
        return requests


def _fill(stream: socket.socket, view: memoryview) -> None:
    while view:
        got = stream.recv_into(view)
        if not got:
            raise EOFError("the connection has ended")
        if view[0] == ord("-") and got < len(view):
            raise ValueError(bytes(view[:got]).decode(errors="replace"))
        view = view[got:]


def main() -> None:
    """Serve standard input."""
    settings = json.loads(sys.argv[1])
    work = workload(settings["workload"])
    made = chunks(work, settings["start"])
    generator = Generator(settings["port"], settings["connections"], made)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        noted = array("q")
        requests = generator.run(float(line), noted)
        Path(settings["noted"]).write_bytes(noted.tobytes())
        print(json.dumps({"requests": requests}), flush=True)


if __name__ == "__main__":
    main()
