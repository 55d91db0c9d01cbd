"""The promise of the local cache, measured from outside while its foundations are taken away."""

import json
import socket
import time
from collections.abc import Callable
from typing import Any

from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import stats
from tests.proxy.relay import Relay
from tests.proxy.staleness import Hammer, Watch

BOUND_MS = 100.0
Eventually = Callable[..., Any]


def until_served_locally(proxy: Any, eventually: Eventually, hits: int = 200) -> None:
    """Wait until the watched key is answered from memory."""
    eventually(lambda: stats(proxy)["local_hits"] >= hits)


def test_a_calm_day_serves_locally_within_the_bound(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    with Watch(proxy.listen, own_server.address) as watch:
        until_served_locally(proxy, eventually)
        time.sleep(2)
        verdict = watch.verdict()
    counters = stats(proxy)
    assert verdict.errors == 0
    assert verdict.stale_max_ms <= BOUND_MS
    assert verdict.newest > 10
    assert counters["local_hits"] > 0.9 * verdict.reads
    assert counters["invalidations"] > 0


def test_thousands_of_rewrites_a_second_and_then_silence_leave_the_last_value(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    rule = {
        "name": "all",
        "match": {"any": True},
        "levels": [{"metric": "reads", "enter_per_s": 20}],
        "plan": ["local_cache"],
    }
    proxy = proxy_factory(own_server.address, rules=[rule])
    with Watch(proxy.listen, own_server.address, writes_per_s=3000) as watch:
        eventually(lambda: watch.reads > 3000)
        verdict = watch.verdict()
    assert verdict.errors == 0
    assert verdict.stale_max_ms <= BOUND_MS
    with own_server.client() as direct, socket.create_connection(proxy.listen.split(":")) as s:
        last = direct.get("hot")
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            s.sendall(b"GET hot\r\n")
            assert s.recv(100).split(b"\r\n")[1] == last


def test_a_half_open_tracking_connection_ends_local_answers_within_the_bound(
    own_server: EmbeddedServer, relay: Relay, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(relay.address)
    with Watch(proxy.listen, own_server.address) as watch:
        until_served_locally(proxy, eventually)
        relay.freeze_tracking()
        time.sleep(0.5)
        frozen = stats(proxy)["local_hits"]
        reads = watch.reads
        time.sleep(0.5)
        assert stats(proxy)["local_hits"] == frozen
        # Reads go on upstream as if there were no cache.
        assert watch.reads > reads + 100
        relay.thaw()
        eventually(lambda: stats(proxy)["local_hits"] > frozen + 100)
        verdict = watch.verdict()
    assert verdict.errors == 0
    assert verdict.stale_max_ms <= BOUND_MS


def test_a_cut_tracking_connection_drops_what_it_proved(
    own_server: EmbeddedServer, relay: Relay, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(relay.address)
    with Watch(proxy.listen, own_server.address) as watch:
        until_served_locally(proxy, eventually)
        for _ in range(5):
            hits = stats(proxy)["local_hits"]
            eventually(relay.cut_tracking)  # reads may be quicker than a new connection
            eventually(lambda hits=hits: stats(proxy)["local_hits"] > hits + 100)
        verdict = watch.verdict()
    assert verdict.errors == 0
    assert verdict.stale_max_ms <= BOUND_MS
    assert stats(proxy)["tracking_lost"] >= 5


def test_a_stopped_server_is_not_spoken_for_past_the_bound(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    with Watch(proxy.listen, own_server.address) as watch:
        until_served_locally(proxy, eventually)
        for _ in range(3):
            hits = stats(proxy)["local_hits"]
            own_server.pause()
            time.sleep(0.4)
            stopped = stats(proxy)["local_hits"]
            time.sleep(0.2)
            assert stats(proxy)["local_hits"] == stopped
            own_server.resume()
            eventually(lambda hits=hits: stats(proxy)["local_hits"] > hits + 100)
        verdict = watch.verdict()
    assert verdict.errors == 0
    assert verdict.stale_max_ms <= BOUND_MS


def test_client_pause_is_survived_within_the_bound(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    with Watch(proxy.listen, own_server.address) as watch, own_server.client() as admin:
        until_served_locally(proxy, eventually)
        for mode in ("ALL", "WRITE"):
            hits = stats(proxy)["local_hits"]
            admin.execute_command("CLIENT PAUSE", 300, mode)
            eventually(lambda hits=hits: stats(proxy)["local_hits"] > hits + 100)
        verdict = watch.verdict()
    assert verdict.errors == 0
    assert verdict.stale_max_ms <= BOUND_MS


def test_flushall_elsewhere_empties_the_local_cache(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    host, port = proxy.listen.split(":")
    with own_server.client() as direct, socket.create_connection((host, int(port))) as s:
        direct.set("hot", "1")

        def is_local() -> bool:
            s.sendall(b"GET hot\r\n")
            assert s.recv(100) == b"$1\r\n1\r\n"
            return stats(proxy)["local_hits"] > 0

        eventually(is_local, every_s=0.001)
        direct.flushall()
        time.sleep(BOUND_MS / 1e3)
        s.sendall(b"GET hot\r\n")
        assert s.recv(100) == b"$-1\r\n"


def test_a_write_through_the_proxy_is_seen_by_the_next_read_on_any_connection(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=2)
    host, port = proxy.listen.split(":")
    connections = [socket.create_connection((host, int(port))) for _ in range(4)]

    def ask(s: socket.socket, line: bytes) -> bytes:
        s.sendall(line)
        return s.recv(100)

    def is_local() -> bool:
        for s in connections:
            ask(s, b"GET hot\r\n")
        return stats(proxy)["local_hits"] > 100

    ask(connections[0], b"SET hot 0\r\n")
    eventually(is_local, every_s=0)
    with Hammer(proxy.listen, b"GET hot\r\n"):
        for n in range(1, 1000):
            writer = connections[n % 4]
            assert ask(writer, b"SET hot %d\r\n" % n) == b"+OK\r\n"
            for s in connections:
                assert ask(s, b"GET hot\r\n").split(b"\r\n")[1] == b"%d" % n
    # In one pipeline too.
    connections[0].sendall(b"SET hot z\r\nGET hot\r\n")
    got = b""
    while not got.endswith(b"$1\r\nz\r\n"):
        got += connections[0].recv(100)
    assert got == b"+OK\r\n$1\r\nz\r\n"
    assert stats(proxy)["local_hits"] > 100
    for s in connections:
        s.close()


def test_an_expiring_value_is_not_served_past_its_time(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    host, port = proxy.listen.split(":")
    with own_server.client() as direct, socket.create_connection((host, int(port))) as s:
        direct.set("hot", "1")

        def ask() -> bytes:
            s.sendall(b"GET hot\r\n")
            return s.recv(100)

        eventually(lambda: ask() and stats(proxy)["local_hits"] > 0, every_s=0.001)
        direct.set("hot", "2", px=400)
        ends = time.monotonic() + 0.4
        eventually(lambda: ask() == b"$1\r\n2\r\n", every_s=0.001)
        hits = stats(proxy)["local_hits"]
        while ask() != b"$-1\r\n":
            assert time.monotonic() < ends + 0.05
        assert stats(proxy)["local_hits"] > hits


def test_zero_staleness_switches_local_answers_off(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, max_staleness_ms=0)
    with Watch(proxy.listen, own_server.address) as watch:
        eventually(lambda: json.loads(proxy.hot())["keys"])
        eventually(lambda: watch.reads > 2000)
        verdict = watch.verdict()
    assert verdict.errors == 0
    assert stats(proxy)["local_hits"] == 0
    assert json.loads(proxy.hot())["local_cache"]["on"] is False
