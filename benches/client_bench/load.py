"""What protected clients do to servers: heartbeats, a hot key under rewrites, balance in a Cluster."""

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import redis
from redis.cluster import RedisCluster

import keyheat
from client_bench.figure import Figure
from client_bench.hits import KEY, VALUE
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from proxy_bench.measure import cpu_ns

CLIENTS = 1_000
WATCH_S = 6.0
READERS = 8
REWRITES_PER_S = 10


def heartbeats() -> Iterator[Figure]:
    """A thousand tracking connections that beat as often as the engine's would: one real, the rest like it.

    The interval is what the engine itself takes once the server has told it how many track.
    """
    with EmbeddedServer() as server:
        client = keyheat.protect(redis.Redis(port=server.port))
        client.set(KEY, VALUE)
        crowd = [_tracking(server.port) for _ in range(CLIENTS)]
        until = time.monotonic() + 20
        stats: dict[str, Any] = {}
        while time.monotonic() < until:
            for _ in range(200):
                client.get(KEY)
            time.sleep(0.005)
            stats = client.keyheat.stats()  # type: ignore[attr-defined]
            if stats["max_staleness_ms"] > 100 and stats["local_hits"]:
                break
        bound_ms = stats["max_staleness_ms"]
        interval_s = stats["heartbeat_ms"] / 1e3
        idle = _server_share(server.pid, lambda: time.sleep(WATCH_S))
        busy = _server_share(server.pid, lambda: _beat(crowd, interval_s))
        for each in crowd:
            each.close()
        client.close()
    yield Figure("heartbeats", f"staleness bound that {CLIENTS} clients of one node widen to", bound_ms, "ms")
    yield Figure(
        "heartbeats",
        f"{CLIENTS} clients' heartbeats, share of the node's core",
        (busy - idle) * 100,
        "%",
        2.0,
    )


def _tracking(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"HELLO 3\r\nCLIENT TRACKING ON\r\n")
    text = b""
    while not text.endswith(b"+OK\r\n"):
        text += connection.recv(65_536)
    connection.setblocking(False)
    return connection


def _server_share(pid: int, work: Any) -> float:
    start, spent = time.monotonic(), cpu_ns(pid)
    work()
    return (cpu_ns(pid) - spent) / 1e9 / (time.monotonic() - start)


def _beat(crowd: list[socket.socket], interval_s: float) -> None:
    """Each connection asks ROLE once an interval, evenly spread."""
    selector = selectors.DefaultSelector()
    for each in crowd:
        selector.register(each, selectors.EVENT_READ)
    start = time.monotonic()
    sent = 0
    while (past := time.monotonic() - start) < WATCH_S:
        due = int(past / interval_s * len(crowd))
        while sent < due:
            crowd[sent % len(crowd)].send(b"*1\r\n$4\r\nROLE\r\n")
            sent += 1
        for key, _ in selector.select(interval_s / len(crowd)):
            key.fileobj.recv(65_536)  # type: ignore[union-attr]
    selector.close()


def rewrites() -> Iterator[Figure]:
    """Eight threads read a key that is rewritten ten times a second: protected, and not."""
    rates: dict[str, list[float]] = {"plain": [], "protected": []}
    with EmbeddedServer() as server:
        for _ in range(3):
            for kind, found in rates.items():
                found.append(_reads_per_s(server.port, kind))
    plain, protected = (sorted(rates[kind])[1] for kind in ("plain", "protected"))
    yield Figure("rewrites", "8 threads read a key rewritten 10/s, unprotected", plain, "reads/s")
    yield Figure("rewrites", "the same, protected", protected, "reads/s")
    yield Figure("rewrites", "protected / unprotected", protected / plain, "x", 0.95, is_floor=True)


def _reads_per_s(port: int, kind: str) -> float:
    client = redis.Redis(port=port)
    if kind == "protected":
        client = keyheat.protect(client)
    client.set(KEY, VALUE)
    over = threading.Event()
    counts = [0] * READERS

    def read(number: int) -> None:
        while not over.is_set():
            client.get(KEY)
            counts[number] += 1

    def write() -> None:
        other = redis.Redis(port=port)
        while not over.wait(1 / REWRITES_PER_S):
            other.set(KEY, VALUE)
        other.close()

    threads = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
    threads.append(threading.Thread(target=write))
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    before = sum(counts)
    time.sleep(2.0)
    reads = sum(counts) - before
    over.set()
    for thread in threads:
        thread.join()
    client.close()
    return reads / 2.0


def balance() -> Iterator[Figure]:
    """One key with 80 % of the reads of three primaries: with copies alone, and with the local cache."""
    with EmbeddedCluster(3) as cluster:
        port = cluster.primaries[0].port
        client = RedisCluster(host="127.0.0.1", port=port)
        keys = [f"cold:{i}" for i in range(3_000)]
        client.set(KEY, VALUE)
        for key in keys:
            client.set(key, VALUE)
        bare = _ops(cluster, lambda: _mixed(client.get, client.get, keys))
        yield Figure(
            "balance", "80 % on one key, three primaries: busiest / mean", max(bare) / (sum(bare) / 3), "x"
        )
        copies = keyheat.Copies(client)
        copies.heat(KEY)
        time.sleep(1.5)
        spread = _ops(cluster, lambda: _mixed(lambda key: copies.read("GET", key), client.get, keys))
        copies.close()
        yield Figure("balance", "the same with copies alone", max(spread) / (sum(spread) / 3), "x", 1.05)
        planned = keyheat.protect(RedisCluster(host="127.0.0.1", port=port), plans={"default": ["copies"]})
        for _ in range(2):  # found hot, then hot for as long as the copies' bound
            _mixed(planned.get, planned.get, keys)
        spread = _ops(cluster, lambda: _mixed(planned.get, planned.get, keys))
        planned.close()
        by_plan = max(spread) / (sum(spread) / 3)
        yield Figure("balance", "the same with copies alone, by a plan", by_plan, "x", 1.05)
        protected = keyheat.protect(RedisCluster(host="127.0.0.1", port=port))
        _mixed(protected.get, protected.get, keys)
        cached = _ops(cluster, lambda: _mixed(protected.get, protected.get, keys))
        fall = max(bare) / max(cached)
        yield Figure(
            "balance", "the busiest node's commands fall with the local cache", fall, "x", 10, is_floor=True
        )


def _mixed(hot: Any, cold: Any, keys: list[str]) -> None:
    for i in range(10_000):
        if i % 5:
            hot(KEY)
        else:
            cold(keys[i % len(keys)])


def _ops(cluster: EmbeddedCluster, work: Any) -> list[int]:
    before = [_commands(node) for node in cluster.primaries]
    work()
    return [_commands(node) - past for node, past in zip(cluster.primaries, before, strict=True)]


def _commands(node: EmbeddedServer) -> int:
    with node.client() as client:
        return int(client.info("stats")["total_commands_processed"])
