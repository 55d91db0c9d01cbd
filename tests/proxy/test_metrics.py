"""What `/metrics` says: requests by class, the hottest keys, the age of proofs, copies."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import ask, connect, is_up
from tests.proxy.test_copies import SETTINGS
from tests.proxy.test_hot_set import get

Eventually = Callable[..., Any]
LINE = re.compile(r'(keyheat_\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')
PAIR = re.compile(r'(\w+)="((?:[^"\\\n]|\\.)*)"')
ESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
HOT = {
    "name": "all",
    "match": {"any": True},
    "levels": [{"metric": "ops", "enter_per_s": 5}],
    "min_hot_ms": 60_000,
    "plan": ["local_cache"],
}

Labels = tuple[tuple[str, str], ...]


def series(proxy: Any) -> dict[tuple[str, Labels], float]:
    """Every line of the page by name and labels; each is well formed, comes once, and has its type told."""
    found: dict[tuple[str, Labels], float] = {}
    text = get(proxy, "/metrics")[1]
    for line in text.split("\n"):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        assert match, line
        name, labels, value = match.groups()
        pairs = ((k, re.sub(r"\\.", lambda m: ESCAPED[m[0]], v)) for k, v in PAIR.findall(labels or ""))
        key = (name, tuple(pairs))
        assert key not in found, line
        assert f"# TYPE {name} " in text
        found[key] = float(value)
    return found


def requests(proxy: Any, kind: str) -> dict[str, int]:
    """Requests of a class, by how they were answered."""
    name = "keyheat_requests_by_class_total"
    counts = ((dict(labels), n) for (found, labels), n in series(proxy).items() if found == name)
    return {labels["answered"]: int(n) for labels, n in counts if labels["class"] == kind}


def keys(proxy: Any, what: str = "reads") -> dict[str, float]:
    """Rates of the hottest keys."""
    name = f"keyheat_hot_key_{what}_per_second"
    return {dict(labels)["key"]: n for (found, labels), n in series(proxy).items() if found == name}


def test_requests_are_counted_by_class(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=2, counting=False)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        before = series(proxy)["keyheat_requests_total", ()]
        sent = {
            "read": [b"GET k", b"MGET k l", b"STRLEN k"],
            "write": [b"SET k v", b"DEL k l", b"EVAL 'return 1' 1 k", b"XGROUP CREATE x g $ MKSTREAM"],
            "transaction": [b"MULTI", b"EXEC"],
            "blocking": [b"BLPOP l 0.01", b"WAIT 0 1"],
            "server": [b"INFO server", b"DBSIZE", b"PUBLISH c m"],
            "connection": [b"ECHO a"],
            "other": [b"NOSUCH k"],
            "pubsub": [b"SUBSCRIBE c"],
        }
        reads = requests(proxy, "read")["upstream"]
        for line in (line for lines in sent.values() for line in lines):
            ask(s, line + b"\r\n")
        for kind, lines in sent.items():
            count = len(lines) + (reads if kind == "read" else 0)
            way = "proxy" if kind == "connection" else "upstream"
            assert requests(proxy, kind) == {way: count}, kind
        total = sum(len(lines) for lines in sent.values())
        assert series(proxy)["keyheat_requests_total", ()] == before + total


def test_requests_that_the_proxy_answers_with_an_error_say_so(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, counting=False)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        assert ask(s, b"PSYNC ? -1\r\n").startswith(b"-ERR keyheat: ")
        assert ask(s, b"EXEC\r\n").startswith(b"-ERR")
        own_server.kill()
        eventually(
            lambda: ask(s, b"GET k\r\n").startswith(b"-ERR keyheat: ") and "error" in requests(proxy, "read")
        )
    assert requests(proxy, "other") == {"error": 1}
    assert requests(proxy, "transaction") == {"error": 1}


def test_a_request_that_waits_for_those_before_it_is_counted_once(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, counting=False)
    eventually(lambda: is_up(proxy))
    before = requests(proxy, "read")["upstream"]
    with connect(proxy) as s:
        s.sendall(b"GET k\r\nMULTI\r\nEXEC\r\nGET k\r\nBLPOP l 0.01\r\nGET k\r\n")
        got = b""
        while got.count(b"\r\n") < 6:
            got += s.recv(4096)
    assert requests(proxy, "read") == {"upstream": before + 3}
    assert requests(proxy, "transaction") == {"upstream": 2}
    assert requests(proxy, "blocking") == {"upstream": 1}


def test_reads_answered_from_memory_and_the_hottest_keys_are_shown(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, rules=[HOT], metrics_hot_keys=2)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        for key in (b"one", b"two", b"three"):
            ask(s, b"SET %s secret-value\r\n" % key)

        def are_shown() -> bool:
            for request in (b"GET one\r\n", b"GET one\r\n", b"GET one\r\n", b"GET two\r\n", b"GET two\r\n"):
                ask(s, request)
            ask(s, b"GET three\r\n")
            return list(keys(proxy)) == ["one", "two"] and requests(proxy, "read").get("local_cache", 0) > 20

        eventually(are_shown)
        assert keys(proxy)["one"] > keys(proxy)["two"] > 0
        eventually(lambda: are_shown() and keys(proxy, "local_hits")["one"] > 0)
        assert keys(proxy, "bytes")["one"] > keys(proxy)["one"]
        assert keys(proxy, "writes").keys() == {"one", "two"}
    assert "secret-value" not in get(proxy, "/metrics")[1]


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (b'a"b\\c{x="1"}', 'a"b\\c{x="1"}'),
        ("käse".encode(), "käse"),
        (b"a\nkeyheat_clients 7", "base64:YQprZXloZWF0X2NsaWVudHMgNw=="),
        (b"\xff\x00", "base64:/wA="),
        (b"base64:/wA=", "base64:YmFzZTY0Oi93QT0="),
        (b"x" * 300, None),
    ],
)
def test_no_key_can_break_the_page(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually, key: bytes, shown: str | None
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, rules=[HOT])
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        request = b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key)
        [name] = eventually(lambda: [ask(s, request) for _ in range(10)] and keys(proxy))
    assert name == shown or (shown is None and re.fullmatch(r"long:[0-9a-f]{16}", name))


def test_redacted_keys_are_shown_as_hashes_and_none_where_none_are_wanted(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, rules=[HOT], redact_keys=True)
    without = proxy_factory(own_server.address, shards=1, rules=[HOT], metrics_hot_keys=0)
    eventually(lambda: is_up(proxy) and is_up(without))
    with connect(proxy) as s, connect(without) as other:
        [name] = eventually(lambda: [ask(s, b"GET secret-name\r\n") for _ in range(10)] and keys(proxy))
        assert re.fullmatch(r"redacted:[0-9a-f]{16}", name)
        assert "secret-name" not in get(proxy, "/metrics")[1]
        eventually(
            lambda: (
                [ask(other, b"GET k\r\n") for _ in range(10)] and series(without)["keyheat_hot_keys", ()] == 1
            )
        )
        assert keys(without) == {}


def test_the_age_of_the_proof_stays_below_the_bound_and_grows_while_the_node_hangs(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, rules=[HOT], max_staleness_ms=200)
    eventually(lambda: is_up(proxy))

    def age() -> float:
        return series(proxy).get(
            ("keyheat_node_proof_age_seconds", (("node", own_server.address),)), math.nan
        )

    assert math.isnan(age()), "nothing is cached, so nothing is proved"
    with connect(proxy) as s:
        ask(s, b"SET k v\r\n")
        eventually(
            lambda: [ask(s, b"GET k\r\n") for _ in range(10)] and "local_cache" in requests(proxy, "read")
        )
        eventually(lambda: age() < 0.1)
        own_server.pause()
        eventually(lambda: age() > 0.4)
        own_server.resume()
        eventually(lambda: age() < 0.1)


def test_copies_are_counted(
    session_cluster: EmbeddedCluster, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(session_cluster.url, shards=1, **SETTINGS)
    eventually(lambda: is_up(proxy))

    def value(name: str) -> float:
        return series(proxy)[f"keyheat_copies_{name}", ()]

    assert (value("owned"), value("placed_total"), value("failures_total")) == (0, 0, 0)
    with connect(proxy) as s:
        ask(s, b"SET item:1 v\r\n")
        eventually(
            lambda: (
                [ask(s, b"GET item:1\r\n") for _ in range(20)]
                and value("owned") == 1
                and value("placed_total") >= 2
                and "copy" in requests(proxy, "read")
            )
        )
        ask(s, b"DEL item:1\r\n")


def test_copies_that_cannot_be_made_are_counted(
    server_binary: str, proxy_factory: Any, eventually: Eventually
) -> None:
    with EmbeddedCluster(1, binary=server_binary) as alone:
        proxy = proxy_factory(alone.url, shards=1, **SETTINGS)
        eventually(lambda: is_up(proxy))
        with connect(proxy) as s:
            eventually(
                lambda: (
                    [ask(s, b"GET item:1\r\n") for _ in range(20)]
                    and series(proxy)["keyheat_copies_failures_total", ()] >= 1
                )
            )
        assert series(proxy)["keyheat_copies_placed_total", ()] == 0


def test_reads_of_a_replica_are_counted_as_such(
    own_server: EmbeddedServer, server_binary: str, proxy_factory: Any, eventually: Eventually
) -> None:
    with EmbeddedServer(binary=server_binary) as replica, replica.client() as direct:
        direct.execute_command("REPLICAOF", "127.0.0.1", own_server.port)
        eventually(lambda: direct.info("replication")["master_link_status"] == "up")
        proxy = proxy_factory(own_server.address, shards=1, read_from="prefer-replica", local_cache=False)
        eventually(lambda: is_up(proxy))
        with connect(proxy) as s:
            eventually(lambda: ask(s, b"GET k\r\n") and requests(proxy, "read").get("replica", 0) > 5)
