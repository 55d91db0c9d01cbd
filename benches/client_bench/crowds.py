"""Many callers miss one key: how often the loader runs, and how long the others wait."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import redis
import redis.asyncio

import keyheat
from client_bench.figure import Figure
from keyheat.server.embedded import EmbeddedServer

LOAD_S = 0.1
SLOW_S = 0.5
TASKS, THREADS, PROCESSES, THREADS_EACH = 200, 64, 8, 8

WORKER = """
import json, sys, threading, time, redis, keyheat
port, threads, load_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
client = keyheat.protect(redis.Redis(port=port))
client.ping()
loads, waits, lock = [0], [], threading.Lock()
def load():
    loads[0] += 1
    time.sleep(load_s)
    return b"value"
def ask():
    gate.wait()
    start = time.perf_counter()
    assert client.get_or_load("crowd", load, ttl=60) == b"value"
    with lock:
        waits.append(time.perf_counter() - start)
gate = threading.Barrier(threads + 1)
pool = [threading.Thread(target=ask) for _ in range(threads)]
[thread.start() for thread in pool]
print("ready", flush=True)
sys.stdin.readline()
gate.wait()
[thread.join() for thread in pool]
print(json.dumps({"loads": loads[0], "waits": waits}), flush=True)
"""


def figures() -> Iterator[Figure]:
    """Tasks, threads and processes."""
    with EmbeddedServer() as server:
        loads, waits = asyncio.run(_tasks(server.port))
        yield from _told(f"{TASKS} asyncio tasks", loads, waits, LOAD_S, most=1)
    with EmbeddedServer() as server:
        loads, waits = _processes(server.port, 1, THREADS, LOAD_S)
        yield from _told(f"{THREADS} threads", loads, waits, LOAD_S, most=1)
    with EmbeddedServer() as server:
        loads, waits = _processes(server.port, PROCESSES, THREADS_EACH, SLOW_S)
        yield from _told(f"{PROCESSES} processes x {THREADS_EACH} threads", loads, waits, SLOW_S, most=2)


def _told(who: str, loads: int, waits: list[float], load_s: float, *, most: int) -> Iterator[Figure]:
    waits.sort()
    p99 = waits[int(len(waits) * 0.99) - 1]
    yield Figure("crowds", f"{who} miss one key: loads", loads, "", most)
    yield Figure("crowds", f"{who}: p99 of the wait beyond the loader's time", (p99 - load_s) * 1e3, "ms", 50)


async def _tasks(port: int) -> tuple[int, list[float]]:
    client = keyheat.protect(redis.asyncio.Redis(port=port))
    await client.ping()
    loads = 0
    waits: list[float] = []

    async def load() -> bytes:
        nonlocal loads
        loads += 1
        await asyncio.sleep(LOAD_S)
        return b"value"

    async def ask() -> None:
        start = time.perf_counter()
        await client.get_or_load("crowd", load, ttl=60)  # type: ignore[attr-defined]
        waits.append(time.perf_counter() - start)

    await asyncio.gather(*(ask() for _ in range(TASKS)))
    await client.aclose()
    return loads, waits


def _processes(port: int, processes: int, threads: int, load_s: float) -> tuple[int, list[float]]:
    command = [sys.executable, "-c", WORKER, str(port), str(threads), str(load_s)]
    pool = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for each in pool:
        assert each.stdout is not None
        each.stdout.readline()
    told = []
    readers = [
        threading.Thread(target=lambda one=each: told.append(one.communicate("go\n")[0])) for each in pool
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    answers = [json.loads(text) for text in told]
    return sum(one["loads"] for one in answers), [wait for one in answers for wait in one["waits"]]
