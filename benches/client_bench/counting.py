"""What counting adds to a command of which nothing is hot.

Instructions by callgrind, of the calling thread alone, as the difference of a long and a short run: wall
time cannot resolve a percent here. Hash seeds move figures by half a percent, so several are taken.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import redis

import keyheat
from client_bench.figure import Figure, LeftOutError
from keyheat._keyheat import Guard
from keyheat.server.embedded import EmbeddedServer

SEEDS = (0, 1, 2)
SHORT, LONG = 400, 1_600

SCRIPT = """
import gc, sys, redis, keyheat
mode, port, calls = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
client = redis.Redis(port=port)
if mode == "protected":
    client = keyheat.protect(client)
keys = [f"key:{i}" for i in range(500)]
for key in keys[:10]:
    client.get(key)
gc.collect(); gc.freeze(); gc.disable()
for i in range(calls):
    client.get(keys[i % 500])
"""


def figures() -> Iterator[Figure]:
    """The ratio by instructions, and nanoseconds per call."""
    yield Figure("counting", "one counted GET: the native part of a command, CPU", _ns_per_call(), "ns", 300)
    if shutil.which("valgrind") is None:
        raise LeftOutError("valgrind is not installed: no ratio by instructions")
    with EmbeddedServer() as server:
        plain, protected = [], []
        for seed in SEEDS:
            plain.append(_instructions("plain", server.port, seed))
            protected.append(_instructions("protected", server.port, seed))
    yield Figure("counting", "redis-py GET, instructions", median(plain), "")
    ratios = [own / bare for own, bare in zip(protected, plain, strict=True)]
    yield Figure("counting", "counting adds to a GET, by instructions", (median(ratios) - 1) * 100, "%", 1.0)


def _instructions(mode: str, port: int, seed: int) -> float:
    return (_run(mode, port, seed, LONG) - _run(mode, port, seed, SHORT)) / (LONG - SHORT)


def _run(mode: str, port: int, seed: int, calls: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        tool = ["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={out}"]
        command = [*tool, sys.executable, "-c", SCRIPT, mode, str(port), str(calls)]
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        text = (Path(folder) / "out-01").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
    if found is None:
        raise RuntimeError("callgrind wrote no total")
    return int(found.group(1))


def _ns_per_call() -> float:
    """The native work of one command, as a native caller has it: `leave` of a GET."""
    with EmbeddedServer() as server:
        client = keyheat.protect(redis.Redis(port=server.port))
        guard: Guard = client.keyheat.guard  # type: ignore[attr-defined]
        calls = [("GET", f"key:{i}") for i in range(50_000)]
        reply = b"v" * 64
        rounds = []
        for _ in range(7):
            start = time.thread_time_ns()
            for args in calls:
                guard.leave(args, reply)
            spent = time.thread_time_ns() - start
            start = time.thread_time_ns()
            for _ in calls:
                pass
            rounds.append((spent - (time.thread_time_ns() - start)) / len(calls))
        client.close()
    return median(rounds)
