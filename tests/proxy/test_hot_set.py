"""What the proxy finds hot, and what it shows of it."""

import base64
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer

Eventually = Callable[..., Any]


def get(proxy: Any, path: str) -> tuple[int, str]:
    """Status and body of a page."""
    try:
        with urllib.request.urlopen(f"http://{proxy.http}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def hot(proxy: Any) -> dict[str, Any]:
    """The hot keys, by name."""
    return {k["key"]: k for k in json.loads(get(proxy, "/api/hot")[1])["keys"]}


class Load:
    """A connection that sends commands and waits for their replies."""

    def __init__(self, proxy: Any) -> None:
        host, port = proxy.listen.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)))
        self._file = self._socket.makefile("rb")

    def send(self, *lines: bytes) -> None:
        """Send inline commands; wait until all are answered."""
        self._socket.sendall(b"\r\n".join(lines) + b"\r\n")
        for _ in lines:
            head = self._file.readline()
            if head[:1] == b"$" and head != b"$-1\r\n":
                self._file.read(int(head[1:]) + 2)

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self._socket.close()


@pytest.fixture
def load() -> Any:
    """Make loads that are closed after the test."""
    made: list[Load] = []

    def make(proxy: Any) -> Load:
        made.append(Load(proxy))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_key_above_the_default_rule_is_found_at_once_and_shown_with_its_heat(
    own_server: EmbeddedServer, proxy_factory: Any, load: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    one, two = load(proxy), load(proxy)
    one.send(b"SET hot v")
    started = proxy_now()
    for i in range(60):
        one.send(b"GET hot", b"GET cold:%d" % i)
        two.send(b"GET hot")
    shown = eventually(lambda: hot(proxy).get("hot"), timeout_s=2)
    assert shown["state"] == "hot"
    assert shown["rule"] == "default"
    assert shown["plan"] == ["local_cache"]
    assert shown["node"] == own_server.address
    assert base64.b64decode(shown["key_base64"]) == b"hot"
    assert 100 <= shown["reads_per_s"] <= 140
    assert 0.5 < shown["share"] <= 1
    assert shown["error_per_s"] == 0
    assert started < shown["since_ns"] < started + 2_000_000_000
    assert "cold:1" not in hot(proxy)


def proxy_now() -> int:
    """The clock of `since_ns`."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_a_hot_key_cools_and_leaves(
    own_server: EmbeddedServer, proxy_factory: Any, load: Any, eventually: Eventually
) -> None:
    rule = {
        "name": "quick",
        "match": {"prefix": "h"},
        "levels": [{"metric": "reads", "enter_per_s": 50}],
        "min_hot_ms": 0,
        "cooling_ms": 500,
        "plan": ["local_cache"],
    }
    proxy = proxy_factory(own_server.address, rules=[rule])
    client = load(proxy)
    client.send(b"SET hot v")
    client.send(*[b"GET hot"] * 60)
    eventually(lambda: "hot" in hot(proxy))
    version = json.loads(get(proxy, "/api/hot")[1])["version"]
    eventually(lambda: hot(proxy)["hot"]["state"] == "cooling", timeout_s=3)
    eventually(lambda: "hot" not in hot(proxy), timeout_s=5)
    assert json.loads(get(proxy, "/api/hot")[1])["version"] > version
    assert json.loads(proxy.stats())["cache_entries"] in (0, 1)


def test_rules_say_which_keys_and_how_hot(
    own_server: EmbeddedServer, proxy_factory: Any, load: Any, eventually: Eventually
) -> None:
    def rule(name: str, match: dict[str, str], metric: str, per_s: float, *plan: str) -> dict[str, Any]:
        return {
            "name": name,
            "match": match,
            "levels": [{"metric": metric, "enter_per_s": per_s}],
            "plan": list(plan),
        }

    proxy = proxy_factory(
        own_server.address,
        rules=[
            rule("never cached", {"exact": "counter"}, "ops", 50),
            rule("written", {"prefix": "w:"}, "writes", 50, "local_cache"),
            rule("big", {"glob": "b:*"}, "bytes", 500_000, "local_cache"),
        ],
    )
    client = load(proxy)
    client.send(b"SET b:1 " + b"x" * 10_000, b"SET b:2 x")
    for _ in range(80):
        client.send(b"GET counter", b"SET w:1 x", b"GET w:2", b"GET b:1", b"GET b:2", b"GET other")
    eventually(lambda: len(hot(proxy)) == 3, timeout_s=2)
    shown = {name: (k["rule"], k["plan"]) for name, k in hot(proxy).items()}
    assert shown == {
        "counter": ("never cached", []),
        # Found, but a key that is only written gains nothing from being cached.
        "w:1": ("written", []),
        "b:1": ("big", ["local_cache"]),
    }


def test_the_share_is_that_of_the_keys_own_node(
    cluster: EmbeddedCluster, proxy_factory: Any, load: Any, eventually: Eventually
) -> None:
    rule = {
        "name": "half",
        "match": {"any": True},
        "levels": [{"metric": "ops", "enter_per_s": 20, "enter_share": 0.5}],
        "plan": ["local_cache"],
    }
    proxy = proxy_factory(cluster.url, rules=[rule])
    client = load(proxy)
    owners = {k: cluster.owner(k) for k in (f"k{i}" for i in range(300))}
    lonely = next(k for k, node in owners.items() if node is cluster.primaries[0])
    crowd = [k for k, node in owners.items() if node is not cluster.primaries[0]]
    # `lonely` has a small part of all traffic, and most of that of its node.
    for _ in range(3):
        for i in range(0, len(crowd) - 4, 4):
            client.send(b"GET " + lonely.encode(), *(b"GET " + k.encode() for k in crowd[i : i + 4]))
    eventually(lambda: list(hot(proxy)) == [lonely], timeout_s=2)
    assert hot(proxy)[lonely]["share"] > 0.9
    assert hot(proxy)[lonely]["node"] == cluster.primaries[0].address


def test_redacted_keys_appear_nowhere(
    own_server: EmbeddedServer, proxy_factory: Any, load: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, redact_keys=True)
    client = load(proxy)
    client.send(*[b"GET secret-name"] * 200)
    eventually(lambda: hot(proxy))
    for path in ("/api/hot", "/metrics", "/healthz"):
        assert "secret-name" not in get(proxy, path)[1]
    [shown] = hot(proxy).values()
    assert shown["key"].startswith("redacted:")
    assert shown["key_base64"] is None


def test_the_local_cache_can_be_switched_while_running(
    own_server: EmbeddedServer, proxy_factory: Any, load: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    client = load(proxy)
    client.send(b"SET hot v")

    def hits() -> int:
        count: int = json.loads(proxy.stats())["local_hits"]
        return count

    def is_served_locally() -> bool:
        client.send(*[b"GET hot"] * 100)
        return hits() > 0

    eventually(is_served_locally)
    proxy.set_local_cache(False)
    eventually(lambda: json.loads(get(proxy, "/api/hot")[1])["local_cache"]["reason"] == "switched off")
    before = hits()
    client.send(*[b"GET hot"] * 100)
    assert hits() == before
    proxy.set_local_cache(True)
    eventually(lambda: client.send(*[b"GET hot"] * 100) or hits() > before)


def test_counting_off_finds_nothing_and_says_so(
    own_server: EmbeddedServer, proxy_factory: Any, load: Any
) -> None:
    proxy = proxy_factory(own_server.address, counting=False)
    load(proxy).send(*[b"GET hot"] * 500)
    assert hot(proxy) == {}
    assert json.loads(get(proxy, "/api/hot")[1])["local_cache"]["on"] is False


def test_pages_answer_and_health_follows_the_upstream(
    own_server: EmbeddedServer, proxy_factory: Any, load: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address)
    load(proxy).send(b"GET k")
    status, body = get(proxy, "/healthz")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    status, body = get(proxy, "/metrics")
    assert status == 200
    assert "# TYPE keyheat_requests_total counter" in body
    assert "# TYPE keyheat_clients gauge" in body
    assert "keyheat_clients 1\n" in body
    assert get(proxy, "/nothing")[0] == 404
    own_server.kill()
    client = load(proxy)
    eventually(lambda: client.send(b"GET k") or get(proxy, "/healthz")[0] == 503)
    own_server.restart()
    eventually(lambda: client.send(b"GET k") or get(proxy, "/healthz")[0] == 200)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_staleness_ms": 3}, "max_staleness_ms"),
        ({"window_ms": 1}, "window_ms"),
        ({"cache_bytes": 0}, "cache_bytes"),
        ({"log": "loud"}, "log"),
        ({"nonsense": 1}, "nonsense"),
        ({"rules": [{"name": "x", "match": {"any": True}, "levels": []}]}, "rules"),
        (
            {
                "rules": [
                    {
                        "name": "x",
                        "match": {"any": True},
                        "levels": [{"metric": "ops", "enter_per_s": 1, "exit_per_s": 2}],
                    }
                ]
            },
            "exit",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(proxy_factory: Any, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        proxy_factory("127.0.0.1:1", **change)
