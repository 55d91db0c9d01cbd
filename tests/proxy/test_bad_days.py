"""What the proxy does when something around it breaks."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer, free_ports
from tests.proxy.proxies import ask, client, connect, is_up, stats

Eventually = Callable[..., Any]
MIB = 1 << 20


def memory_mib() -> float:
    """Resident memory of this process, where the proxy runs too."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / MIB


def test_an_upstream_that_is_down_at_start_gives_clear_errors_and_is_found_when_it_comes(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    own_server.kill()
    proxy = proxy_factory(own_server.address)
    with connect(proxy) as s:
        eventually(lambda: b"refused" in ask(s, b"GET k\r\n"))
        assert ask(s, b"GET k\r\n").startswith(b"-ERR keyheat: no upstream could be reached")
        assert ask(s, b"PING\r\n") == b"+PONG\r\n"
        busy = os.times()
        time.sleep(1)
        after = os.times()
        assert (after.user + after.system) - (busy.user + busy.system) < 0.3, "a busy loop"
        own_server.restart()
        eventually(lambda: ask(s, b"SET k v\r\n") == b"+OK\r\n")
        assert ask(s, b"GET k\r\n") == b"$1\r\nv\r\n"


def test_an_upstream_that_dies_mid_way_is_told_and_comes_back(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        assert ask(s, b"SET k v\r\n") == b"+OK\r\n"
        own_server.kill()
        eventually(lambda: b"cannot be reached" in ask(s, b"GET k\r\n"))
        busy = os.times()
        for _ in range(20):
            started = time.monotonic()
            assert ask(s, b"GET k\r\n").startswith(b"-ERR keyheat: ")
            assert time.monotonic() - started < 0.2
            time.sleep(0.02)
        after = os.times()
        assert (after.user + after.system) - (busy.user + busy.system) < 0.3, "a busy loop"
        own_server.restart()
        eventually(lambda: ask(s, b"SET k w\r\n") == b"+OK\r\n")


def test_a_request_in_flight_when_the_upstream_dies_is_answered_with_what_is_known(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        assert ask(s, b"GET n\r\n") == b"$-1\r\n"
        own_server.pause()
        s.sendall(b"INCR n\r\nGET n\r\n")
        time.sleep(0.1)
        own_server.kill()
        got = b""
        while got.count(b"\r\n") < 2:
            got += s.recv(4096)
        assert got.count(b"the command may have run") == 2


def test_a_killed_primary_of_a_cluster_fails_over_and_the_rest_serves_on(
    own_cluster: EmbeddedCluster, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_cluster.url)
    eventually(lambda: is_up(proxy))
    victim = own_cluster.primaries[0]
    keys = [f"k{i}" for i in range(200)]
    lost = [k for k in keys if own_cluster.owner(k) is victim]
    kept = [k for k in keys if own_cluster.owner(k) is not victim]
    with client(proxy) as r:
        for k in keys:
            r.set(k, k)
        victim.kill()

        def serves(key: str) -> bool:
            try:
                return bool(r.set(key, key))
            except redis.RedisError:
                return False

        # The Cluster as a whole is down until the failover; then all of it serves.
        eventually(lambda: serves(lost[0]), timeout_s=20)
        eventually(lambda: all(serves(k) for k in kept), timeout_s=20)
        for k in keys:
            assert r.set(k, "after") is True
            assert r.get(k) == b"after"


def test_slots_that_move_are_followed_without_an_error(
    own_cluster: EmbeddedCluster, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_cluster.url)
    eventually(lambda: is_up(proxy))
    source = own_cluster.owner("moving")
    target = next(n for n in own_cluster.primaries if n is not source)
    with source.client() as a, target.client() as b, client(proxy) as r:
        slot = a.execute_command("CLUSTER KEYSLOT", "moving")
        ids = {n: n.client().execute_command("CLUSTER MYID").decode() for n in (source, target)}
        r.set("moving", 1)
        b.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
        a.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
        assert r.get("moving") == b"1"
        host, port = target.address.split(":")
        a.execute_command("MIGRATE", host, port, "moving", 0, 5000)
        assert r.get("moving") == b"1"  # behind ASK
        assert r.incr("moving") == 2
        for node in (b, a):
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
        assert r.incr("moving") == 3  # behind MOVED
        assert r.get("moving") == b"3"
    assert stats(proxy)["redirects"] >= 2


def test_refused_tracking_means_no_caching_said_once(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    with own_server.client() as direct:
        direct.acl_setuser(
            "limited", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-client|tracking"]
        )
    proxy = proxy_factory(f"redis://limited:pw@{own_server.address}")
    with client(proxy, username="limited", password="pw") as r:
        eventually(lambda: is_served(r))
        eventually(lambda: [r.get("k") for _ in range(50)] and json.loads(proxy.hot())["keys"])
        for _ in range(500):
            r.get("k")
    shown = json.loads(proxy.hot())["local_cache"]
    assert shown["on"] is False
    assert "refused tracking" in shown["reason"]
    assert "NOPERM" in shown["reason"]
    assert stats(proxy)["local_hits"] == 0


def is_served(r: Any) -> bool:
    """Whether a request is served."""
    try:
        r.exists("x")
    except redis.RedisError:
        return False
    return True


def test_a_client_that_never_reads_is_cut_and_memory_stays_bounded(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, buffers_max_bytes=64 * MIB, shards=1)
    eventually(lambda: is_up(proxy))
    with own_server.client() as direct:
        direct.set("big", b"x" * MIB)
    before = memory_mib()
    with connect(proxy) as s, client(proxy) as r:
        s.setblocking(False)
        request = b"GET big\r\n"
        peak = 0.0
        deadline = time.monotonic() + 20
        while stats(proxy)["clients_cut"] == 0 and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                s.send(request * 100)
            peak = max(peak, memory_mib() - before)
            assert r.ping() is True
        assert stats(proxy)["clients_cut"] == 1
        # The reading of 100 ms on loopback may come on top before it is looked at.
        assert peak < 1024
        assert r.get("big") is not None


def test_a_value_of_200_mib_passes_both_ways(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    eventually(lambda: is_up(proxy))
    value = os.urandom(MIB) * 200
    with client(proxy, socket_timeout=60) as r, client(proxy) as other:
        assert r.set("big", value) is True
        other.set("small", 1)
        stop = threading.Event()
        pings = []

        def ping() -> None:
            while not stop.is_set():
                pings.append(other.ping())

        thread = threading.Thread(target=ping)
        thread.start()
        assert r.get("big") == value
        stop.set()
        thread.join()
        assert len(pings) > 10
        assert r.strlen("big") == len(value)


@pytest.mark.parametrize(
    ("garbage", "answer"),
    [
        (b"*1\r\n:1\r\n", b"-ERR Protocol error: expected '$', got ':'\r\n"),
        (b"*99999999999\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n$999999999999\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
        (b'GET "\r\n', b"-ERR Protocol error: unbalanced quotes in request\r\n"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", None),
    ],
)
def test_garbage_on_the_port_is_answered_as_the_server_does_and_harms_nobody(
    valkey: str, proxy_factory: Any, eventually: Eventually, garbage: bytes, answer: bytes | None
) -> None:
    proxy = proxy_factory(valkey)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as good, connect(proxy) as bad:
        assert ask(good, b"SET k v\r\n") == b"+OK\r\n"
        bad.sendall(garbage)
        if answer is not None:
            got = b""
            with contextlib.suppress(ConnectionError):
                while data := bad.recv(4096):
                    got += data
            assert got == answer
        assert ask(good, b"GET k\r\n") == b"$1\r\nv\r\n"


_IDLE = """
import resource, socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
print("connected", flush=True)
sys.stdin.readline()
idle[0].sendall(b"SET k v\\r\\n")
assert idle[0].recv(100) == b"+OK\\r\\n"
idle[-1].sendall(b"GET k\\r\\n")
assert idle[-1].recv(100) == b"$1\\r\\nv\\r\\n"
"""


def test_ten_thousand_idle_connections_are_held_cheaply(
    valkey: str, proxy_factory: Any, eventually: Eventually
) -> None:
    count = 10_000
    needed = count + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} open files, the limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    proxy = proxy_factory(valkey, clients_max=20_000)
    eventually(lambda: is_up(proxy))
    before = memory_mib()
    command = [sys.executable, "-c", _IDLE, proxy.listen.split(":")[1], str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        assert clients.stdin is not None
        assert clients.stdout is not None
        assert clients.stdout.readline() == "connected\n"
        eventually(lambda: stats(proxy)["clients"] >= count)
        assert (memory_mib() - before) * 1024 / count < 20
        busy = os.times()
        time.sleep(0.5)
        after = os.times()
        assert (after.user + after.system) - (busy.user + busy.system) < 0.3, "a busy loop"
        clients.communicate("go\n", timeout=30)
    assert clients.returncode == 0
    eventually(lambda: stats(proxy)["clients"] == 0)


def test_more_clients_than_allowed_are_told(valkey: str, proxy_factory: Any, eventually: Eventually) -> None:
    proxy = proxy_factory(valkey, clients_max=2)
    with connect(proxy) as a, connect(proxy) as b:
        assert ask(a, b"PING\r\n") == b"+PONG\r\n"
        assert ask(b, b"PING\r\n") == b"+PONG\r\n"
        with connect(proxy) as c:
            assert c.recv(100) == b"-ERR max number of clients reached\r\n"
    eventually(lambda: stats(proxy)["clients"] == 0)


def test_draining_under_load_loses_no_reply(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    eventually(lambda: is_up(proxy))
    acknowledged = [0] * 8
    unanswered = [0] * 8

    def load(i: int) -> None:
        with connect(proxy) as s:
            while True:
                try:
                    s.sendall(b"INCR n:%d\r\n" % i)
                    reply = s.recv(100)
                except ConnectionError:
                    reply = b""
                if not reply:
                    unanswered[i] += 1
                    return
                assert reply.startswith(b":")
                acknowledged[i] = int(reply[1:])

    threads = [threading.Thread(target=load, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    time.sleep(0.5)
    assert proxy.drain(5.0) is True
    for t in threads:
        t.join(5)
    with own_server.client() as direct:
        for i in range(8):
            # What the server did and what the client was told are the same: nothing that was taken
            # in was dropped without its answer.
            assert int(direct.get(f"n:{i}")) == acknowledged[i]


def test_sigterm_under_load_ends_keyheat_up_in_good_order(
    own_server: EmbeddedServer, start_keyheat: Any, eventually: Eventually
) -> None:
    [port] = free_ports(1)
    process = start_keyheat(
        "up", "--upstream", own_server.url, "--listen", f"127.0.0.1:{port}", "--http", "none"
    )

    def answers() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as s:
                return ask(s, b"EXISTS x\r\n") == b":0\r\n"
        except OSError:
            return False

    eventually(answers)
    told = 0
    with socket.create_connection(("127.0.0.1", port)) as s:
        for _ in range(200):
            told = int(ask(s, b"INCR n\r\n")[1:])
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionError):
            while reply := ask(s, b"INCR n\r\n"):
                told = int(reply[1:])
    assert process.wait(10) == 0
    with own_server.client() as direct:
        assert int(direct.get("n")) == told
