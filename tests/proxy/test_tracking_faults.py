"""Tracking refused, hung or black-holed behind the proxy: it comes back by itself."""

import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import redis

from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import client, connect, is_up, stats
from tests.proxy.relay import Relay

Eventually = Callable[..., Any]
MIB = 1 << 20
RULES = [
    {
        "name": "all",
        "match": {"any": True},
        "plan": ["local_cache"],
        "levels": [{"metric": "ops", "enter_per_s": 5}],
    }
]


def local_cache(proxy: Any) -> dict[str, Any]:
    """Whether it answers locally, and why not."""
    state: dict[str, Any] = json.loads(proxy.hot())["local_cache"]
    return state


def reads(r: Any, count: int = 20) -> bool:
    """Read a key; whether all was served."""
    try:
        for _ in range(count):
            r.get("hot")
    except redis.RedisError:
        return False
    return True


def is_local(proxy: Any, r: Any) -> bool:
    """Whether reads are answered from memory."""
    before = stats(proxy)["local_hits"]
    return reads(r) and stats(proxy)["local_hits"] > before


def test_tracking_refused_by_an_error_that_passes_comes_back(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, rules=RULES, shards=1)
    with own_server.client() as admin, client(proxy) as r:
        admin.config_set("lua-time-limit", 20)
        eventually(lambda: is_local(proxy, r))
        lost = stats(proxy)["tracking_lost"]
        # Meanwhile heartbeats are answered BUSY, and so is what a new tracking connection asks.
        script = "local t = redis.call('TIME') while redis.call('TIME')[1] - t[1] < 3 do end"
        admin.eval(script, 0)
        assert 1 < stats(proxy)["tracking_lost"] - lost <= 10
        eventually(lambda: is_local(proxy, r), timeout_s=5)
        assert local_cache(proxy) == {"on": True, "reason": None}


def test_a_refusal_expires(
    own_server: EmbeddedServer, relay: Relay, proxy_factory: Any, eventually: Eventually
) -> None:
    with own_server.client() as admin:
        admin.acl_setuser("app", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all"])
        proxy = proxy_factory(f"redis://app:pw@{relay.address}", rules=RULES, shards=1)
        with client(proxy, username="app", password="pw") as r:
            eventually(lambda: is_local(proxy, r))
            admin.execute_command("ACL", "SETUSER", "app", "<pw", ">new")
            relay.cut_tracking()
            eventually(lambda: local_cache(proxy)["on"] is False)
            assert "WRONGPASS" in local_cache(proxy)["reason"]
            assert reads(r), "what is connected goes on"
            admin.execute_command("ACL", "SETUSER", "app", ">pw")
            eventually(lambda: is_local(proxy, r), timeout_s=20)
            eventually(lambda: local_cache(proxy)["on"] is True)


def test_a_right_that_is_missing_for_registrations_is_told(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    with own_server.client() as admin:
        admin.acl_setuser(
            "limited", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-exists"]
        )
        proxy = proxy_factory(f"redis://limited:pw@{own_server.address}", rules=RULES, shards=1)
        with client(proxy, username="limited", password="pw") as r:
            eventually(lambda: reads(r) and local_cache(proxy)["on"] is False)
            assert "'exists'" in local_cache(proxy)["reason"]
            connections = admin.info("stats")["total_connections_received"]
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                assert reads(r)
            assert admin.info("stats")["total_connections_received"] - connections <= 2
            assert local_cache(proxy)["on"] is False


def test_a_tracking_connection_that_hangs_at_its_first_registration_is_opened_anew(
    relay: Relay, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(relay.address, shards=1, rules=RULES)
    with client(proxy) as r:
        eventually(lambda: reads(r, 1) and stats(proxy)["upstreams"] == 2)
        time.sleep(0.2)  # both are ready
        relay.freeze_tracking()
        eventually(lambda: reads(r) and stats(proxy)["registrations"] > 0)
        assert stats(proxy)["tracking_lost"] == 0
        eventually(lambda: stats(proxy)["tracking_lost"] > 0, timeout_s=5)
        relay.thaw()
        eventually(lambda: is_local(proxy, r))


def set_of(size: int) -> bytes:
    """A SET of so many bytes."""
    return b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%s\r\n" % (size, bytes(size))


def test_an_upstream_that_takes_nothing_for_its_timeout_is_given_up(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, upstream_timeout_ms=1_000)
    eventually(lambda: is_up(proxy))
    own_server.pause()
    with connect(proxy) as s:
        s.sendall(set_of(48 * MIB))
        assert b"before its reply" in s.recv(1000)
    own_server.resume()


def test_requests_of_clients_that_left_are_counted_until_a_server_takes_them(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1)
    eventually(lambda: is_up(proxy))
    own_server.pause()
    request = set_of(MIB // 2)
    for _ in range(64):
        with connect(proxy) as s:
            before = stats(proxy)["forwarded"]
            s.sendall(request)
            eventually(lambda before=before: stats(proxy)["forwarded"] > before)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it is cut off
    eventually(lambda: stats(proxy)["clients"] == 0)
    time.sleep(0.3)
    assert 30 * MIB < stats(proxy)["buffer_bytes"] < 40 * MIB
    own_server.resume()
    eventually(lambda: stats(proxy)["buffer_bytes"] < MIB)


def test_a_request_on_its_way_is_counted_once(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1)
    eventually(lambda: is_up(proxy))
    own_server.pause()
    with connect(proxy) as s:
        s.sendall(set_of(48 * MIB))
        eventually(lambda: 40 * MIB < stats(proxy)["buffer_bytes"] < 60 * MIB)
        time.sleep(0.3)
        assert 40 * MIB < stats(proxy)["buffer_bytes"] < 60 * MIB
        own_server.resume()
        assert s.recv(100) == b"+OK\r\n"
