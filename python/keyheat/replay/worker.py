"""One process of a replay: some clients of redis-py, a thread each.

Started by `keyheat.replay.runner`. On standard input come two JSON lines, the settings (not as an
argument: a password would show in the process list) and the start, then frames of work (length,
client number, marshalled accesses); on standard output go JSON lines, a count twice a second and the
whole result at the end. When the input ends the clients finish their
work; on SIGTERM they leave it and report at once.
"""

import json
import marshal
import queue
import signal
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, Any, Final

import redis

from keyheat.replay.commands import READ_COMMANDS, VALUE_MAX_BYTES, command, value
from keyheat.replay.histogram import Histogram
from keyheat.server.child import die_with_parent

FRAME: Final = struct.Struct("<IH")
# One access of a frame: due, op, key, size, ttl.
Work = list[tuple[float, str, bytes, int, int]]

_QUEUED_FRAMES: Final = 8
_REPORT_EVERY_S: Final = 0.5


@dataclass(slots=True)
class Tally:
    """What one client did."""

    ops: int = 0
    reads: int = 0
    writes: int = 0
    hits: int = 0
    misses: int = 0
    fills: int = 0
    cut_values: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)

    def to_json(self) -> dict[str, Any]:
        """For the parent to add up."""
        numbers = ("ops", "reads", "writes", "hits", "misses", "fills", "cut_values")
        return {name: getattr(self, name) for name in numbers} | {
            "errors": self.errors,
            "skipped": self.skipped,
            "latency": self.latency.to_json(),
            "lag": self.lag.to_json(),
        }


class Client(threading.Thread):
    """One client connection with its own queue of work."""

    def __init__(self, settings: dict[str, Any], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.work: queue.Queue[Work | None] = queue.Queue(_QUEUED_FRAMES)
        self.tally = Tally()
        self._settings = settings
        self._stop_now = stop
        self._redis = connect(settings)

    def run(self) -> None:
        """Play the work as it comes, until None does."""
        start_s: float = self._settings["start_s"]
        paced: bool = self._settings["paced"]
        while (work := self.work.get()) is not None:
            for due_s, op, key, size_bytes, ttl_s in work:
                if self._stop_now.is_set():
                    break
                if paced:
                    self._wait(start_s + due_s)
                self._play(op, key, size_bytes, ttl_s)
        self._redis.close()

    def _wait(self, due_s: float) -> None:
        early_s = due_s - time.monotonic()
        if early_s > 0:
            self._stop_now.wait(early_s)
        self.tally.lag.add(int((time.monotonic() - due_s) * 1e9))

    def _play(self, op: str, key: bytes, size_bytes: int, ttl_s: int) -> None:
        tally = self.tally
        words = command(op, key, size_bytes, ttl_s)
        if words is None:
            tally.skipped[op] += 1
            return
        tally.cut_values += size_bytes > VALUE_MAX_BYTES and words[0] in ("SET", "APPEND")
        answer, is_good = self._send(words)
        if words[0] in READ_COMMANDS:
            tally.reads += 1
        else:
            tally.writes += 1
        if words[0] == "GET" and is_good:
            if answer is not None:
                tally.hits += 1
                return
            tally.misses += 1
            if self._settings["fill"]:
                tally.fills += 1
                self._send(("SET", key, value(size_bytes), *(("EX", ttl_s) if ttl_s else ())))

    def _send(self, words: tuple[str | bytes | int, ...]) -> tuple[Any, bool]:
        before = time.monotonic_ns()
        try:
            answer = self._redis.execute_command(*words)
        except redis.RedisError as error:
            self.tally.errors[_kind(error)] += 1
            return None, False
        else:
            return answer, True
        finally:
            self.tally.ops += 1
            self.tally.latency.add(time.monotonic_ns() - before)


def connect(settings: dict[str, Any]) -> Any:  # noqa: ANN401 - Redis or RedisCluster, alike in what is used here
    """A client as an application would make it."""
    options = {
        "username": settings["username"],
        "password": settings["password"],
        "protocol": settings["protocol"],
    }
    hosts = [address.rsplit(":", 1) for address in settings["addresses"]]
    if settings["cluster"]:
        nodes = [redis.cluster.ClusterNode(host.strip("[]"), int(port)) for host, port in hosts]
        return redis.RedisCluster(startup_nodes=nodes, **options)
    host, port = hosts[0]
    return redis.Redis(host.strip("[]"), int(port), settings["db"], single_connection_client=True, **options)


def _kind(error: redis.RedisError) -> str:
    name = type(error).__name__
    # A server's error begins with a code of its own; the rest of its text may hold a key.
    code = str(error).split(" ", 1)[0]
    return f"{name} {code}" if isinstance(error, redis.ResponseError) and code.isupper() else name


def _feed(clients: list[Client], source: IO[bytes]) -> None:
    while head := source.read(FRAME.size):
        size, client = FRAME.unpack(head)
        frame = source.read(size)
        if len(frame) < size:
            break  # the parent was interrupted in the middle of it
        clients[client].work.put(marshal.loads(frame))  # noqa: S302 - from our own parent
    for each in clients:
        each.work.put(None)


def main() -> None:
    """Run the clients until their work is done."""
    settings = json.loads(sys.stdin.buffer.readline())
    die_with_parent(settings["parent_pid"])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    clients = [Client(settings, stop) for _ in range(settings["clients"])]
    print(json.dumps({"ready": True}), flush=True)  # noqa: T201 - the protocol with the parent
    start = json.loads(sys.stdin.buffer.readline())
    settings["start_s"] = start["start_s"]
    for client in clients:
        client.start()
    threading.Thread(target=_feed, args=(clients, sys.stdin.buffer), daemon=True).start()
    for client in clients:
        while client.is_alive():
            client.join(_REPORT_EVERY_S)
            done = {"ops": sum(each.tally.ops for each in clients)}
            print(json.dumps({"so_far": done}), flush=True)  # noqa: T201 - the protocol with the parent
    results = [each.tally.to_json() for each in clients]
    print(json.dumps({"results": results}), flush=True)  # noqa: T201 - the protocol with the parent


if __name__ == "__main__":
    main()
