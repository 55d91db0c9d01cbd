"""The client processes of the demo: readers and one writer, each an unmodified redis-py client.

A reader walks its share of the trace's sequence at a steady pace; while the sale is on, a share of
its reads go to the sale's key. Of each of those it notes when it was sent and which write it saw. The
writer rewrites that key at a steady pace with growing write numbers and notes when each was
acknowledged. Times are of one clock for all processes, so staleness can be worked out afterwards over
every single read (`staleness.py`).
"""

import json
import random
import sys
import time
from array import array
from pathlib import Path
from typing import Any, Final

import redis

from keyheat.clock import now_ns
from keyheat.demo import profile
from keyheat.demo.board import Board, Cell, Phase
from keyheat.server.child import die_with_parent

SALE_KEY: Final = b"sale:item:1"
NUMBER_DIGITS: Final = 16
_IDLE_S: Final = 0.002
# A client that fell behind by more starts its schedule anew: no burst to make up for it.
_BEHIND_MAX_S: Final = 0.05
_EARLY_S: Final = 0.0005


def sale_value(number: int, size_bytes: int) -> bytes:
    """The value that write `number` sets."""
    return f"{number:0{NUMBER_DIGITS}d}".encode().ljust(size_bytes, b".")


class _Pace:
    """Says when the next command is due."""

    def __init__(self, per_s: float) -> None:
        self._every_s = 1.0 / per_s
        self._next_s = 0.0

    def wait(self) -> None:
        now_s = time.monotonic()
        if now_s - self._next_s > _BEHIND_MAX_S:
            self._next_s = now_s
        if self._next_s - now_s > _EARLY_S:
            time.sleep(self._next_s - now_s)
        self._next_s += self._every_s


def read(settings: dict[str, Any], board: Board, client: "redis.Redis") -> None:
    """Read until the demo stops; leave the notes on the sale's reads in files."""
    me: int = settings["index"]
    played = profile.load()
    share = played.sequence[me :: settings["readers"]]
    keys = [played.keys[index] for index in share]
    chance = random.Random(me)
    notes = {phase: array("q") for phase in Phase if phase.is_sale}
    pace = _Pace(settings["per_s"])
    at = 0
    current = Phase.WAIT
    (Path(settings["directory"]) / f"ready-{me}").touch()
    while (phase := board.phase) is not Phase.STOP:
        if phase is Phase.WAIT:
            time.sleep(_IDLE_S)
            continue
        if phase is not current:
            current = phase
            # Both halves walk the same sequence.
            at = 0 if phase in (Phase.TRACE_BEFORE, Phase.TRACE_AFTER) else at
        pace.wait()
        is_sale_read = phase.is_sale and chance.random() < settings["sale_share"]
        key = SALE_KEY if is_sale_read else keys[at % len(keys)]
        at += not is_sale_read
        sent_ns = now_ns()
        try:
            value: Any = client.get(key)
        except redis.RedisError:
            value = None
        if is_sale_read and value is not None:
            notes[phase].extend((sent_ns, int(value[:NUMBER_DIGITS])))
            board.count(me, phase, Cell.SALE_READS)
        elif value is None or not value.startswith(key):
            # Every key was written beforehand, and its value names it: all else is an error.
            board.count(me, phase, Cell.ERRORS)
        board.count(me, phase, Cell.READS)
    for phase, noted in notes.items():
        (Path(settings["directory"]) / f"reads-{phase.name}-{me}").write_bytes(noted.tobytes())


def write(settings: dict[str, Any], board: Board, client: "redis.Redis") -> None:
    """Rewrite the sale's key while the sale is on; leave the acknowledgements in a file.

    Every second write goes past keyheat, straight to the node: what keyheat itself did not see must
    not be served stale either.
    """
    me: int = settings["index"]
    host, _, port = settings["owner"].rpartition(":")
    ways = (client, redis.Redis(host, int(port)))
    pace = _Pace(settings["per_s"])
    acknowledged = array("q")  # one cell a write, 0 where the outcome is unknown
    (Path(settings["directory"]) / f"ready-{me}").touch()
    while (phase := board.phase) is not Phase.STOP:
        if not phase.is_sale:
            time.sleep(_IDLE_S)
            continue
        pace.wait()
        number = len(acknowledged) + 1
        try:
            ways[number % len(ways)].set(SALE_KEY, sale_value(number, settings["value_bytes"]))
            acknowledged.append(now_ns())
        except redis.RedisError:
            acknowledged.append(0)
            board.count(me, phase, Cell.ERRORS)
        board.count(me, phase, Cell.WRITES)
    (Path(settings["directory"]) / "writes").write_bytes(acknowledged.tobytes())


def main() -> None:
    """Run one client until the demo stops."""
    settings = json.loads(sys.argv[1])
    die_with_parent(settings["parent_pid"])
    board = Board(Path(settings["directory"]) / "board", settings["clients"])
    host, _, port = settings["address"].rpartition(":")
    client = redis.Redis(host, int(port))
    {"read": read, "write": write}[settings["role"]](settings, board, client)
    client.close()
    board.close()


if __name__ == "__main__":
    main()
