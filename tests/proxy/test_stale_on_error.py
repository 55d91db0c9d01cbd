"""`stale_on_error_ms`: hot keys are answered while their node cannot answer, and nobody else is."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import ask, connect, is_up, stats

Eventually = Callable[..., Any]
RULES = [
    {
        "name": "hot",
        "match": {"prefix": "hot"},
        "levels": [{"metric": "ops", "enter_per_s": 5}],
        "min_hot_ms": 60_000,
        "plan": ["local_cache"],
    }
]
ERROR = b"-ERR keyheat: "


def heat(proxy: Any, s: Any, key: bytes, eventually: Eventually) -> None:
    """Reads until the key is answered from memory."""
    before = stats(proxy)["local_hits"]

    def is_hit() -> bool:
        for _ in range(20):
            ask(s, b"GET %s\r\n" % key)
        return stats(proxy)["local_hits"] > before

    eventually(is_hit)
    time.sleep(0.25)  # a tick renews what was proved
    ask(s, b"GET %s\r\n" % key)


def is_error(answer: bytes) -> bool:
    return answer.startswith(ERROR)


def test_a_hot_key_is_answered_for_so_long_while_its_node_is_down_and_others_are_not(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, rules=RULES, stale_on_error_ms=1_500)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s, connect(proxy) as other:
        for request in (b"SET hot v\r\n", b"SET cold v\r\n", b"GET cold\r\n"):
            ask(s, request)
        heat(proxy, s, b"hot", eventually)
        ask(other, b"SELECT 1\r\n")
        own_server.kill()
        down = time.monotonic()
        time.sleep(0.3)
        answers = set()
        while time.monotonic() < down + 1:
            answers.add(ask(s, b"GET hot\r\n"))
            assert is_error(ask(s, b"GET cold\r\n"))
            assert is_error(ask(s, b"SET cold v\r\n"))
            assert is_error(ask(other, b"GET hot\r\n"))
            time.sleep(0.02)
        assert answers == {b"$1\r\nv\r\n"}
        assert stats(proxy)["stale_answers"] > 10
        time.sleep(max(0, down + 1.65 - time.monotonic()))
        assert is_error(ask(s, b"GET hot\r\n")), "the bound is over"


def test_it_is_off_unless_asked_for(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, rules=RULES)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        ask(s, b"SET hot v\r\n")
        heat(proxy, s, b"hot", eventually)
        own_server.kill()
        eventually(lambda: is_error(ask(s, b"GET hot\r\n")), timeout_s=1)


def test_own_writes_are_still_seen(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, rules=RULES, shards=2, stale_on_error_ms=60_000)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s, connect(proxy) as other:
        for key in (b"hot1", b"hot2", b"hot3"):
            ask(s, b"SET %s old\r\n" % key)
            heat(proxy, s, key, eventually)
        assert ask(other, b"SET hot1 new\r\n") == b"+OK\r\n"
        own_server.kill()
        time.sleep(0.2)
        assert is_error(ask(s, b"GET hot1\r\n"))
        assert ask(s, b"GET hot2\r\n") == b"$3\r\nold\r\n"
        assert is_error(ask(other, b"SET hot2 new\r\n")), "it may have run, for all that is known"
        assert is_error(ask(s, b"GET hot2\r\n"))
        # In one batch: what is behind a write is not answered from before it.
        s.sendall(b"GET hot3\r\nSET hot3 new\r\nGET hot3\r\n")
        got = b""
        while got.count(b"\r\n") < 4:
            got += s.recv(4096)
        assert got.startswith(b"$3\r\nold\r\n-ERR"), got
        assert got.count(b"-ERR") == 2


@pytest.mark.parametrize("why", ["silent", "crowded"])
def test_a_hot_key_is_answered_while_its_node_hangs(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually, why: str
) -> None:
    settings = (
        {"breaker_silence_ms": 300}
        if why == "silent"
        else {"congestion_limit_min": 1, "congestion_limit_max": 1, "congestion_queue_max": 1}
    )
    proxy = proxy_factory(own_server.address, shards=1, rules=RULES, stale_on_error_ms=30_000, **settings)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s, connect(proxy) as one, connect(proxy) as two:
        ask(s, b"SET hot v\r\n")
        heat(proxy, s, b"hot", eventually)
        own_server.pause()
        one.sendall(b"GET cold\r\n")
        two.sendall(b"GET cold\r\n")
        time.sleep(0.6)
        assert ask(s, b"GET hot\r\n") == b"$1\r\nv\r\n"
        assert stats(proxy)["stale_answers"] == 1
        own_server.resume()


def test_a_read_on_its_way_when_the_connection_is_lost_is_answered(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, rules=RULES, stale_on_error_ms=30_000)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        ask(s, b"SET hot v\r\n")
        heat(proxy, s, b"hot", eventually)
        own_server.pause()
        time.sleep(0.2)  # the proof has lapsed: it goes upstream
        s.sendall(b"GET hot\r\nGET cold\r\n")
        time.sleep(0.1)
        own_server.kill()
        got = b""
        while got.count(b"\r\n") < 3:
            got += s.recv(4096)
        assert got.startswith(b"$1\r\nv\r\n-ERR keyheat: lost the connection"), got
    assert json.loads(proxy.stats())["stale_answers"] == 1


def test_reads_on_their_way_to_a_node_that_goes_silent_are_answered(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    settings = {"stale_on_error_ms": 30_000, "breaker_silence_ms": 400}
    proxy = proxy_factory(own_server.address, shards=1, rules=RULES, **settings)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s, connect(proxy) as other:
        for key in (b"hot", b"hot2", b"cold"):
            ask(s, b"SET %s %s\r\n" % (key, key))
        heat(proxy, s, b"hot", eventually)
        heat(proxy, s, b"hot2", eventually)
        own_server.pause()
        time.sleep(0.2)  # the proof has lapsed: they go upstream
        s.sendall(b"GET hot\r\nGET hot2\r\nGET cold\r\nGET hot\r\n")
        other.sendall(b"GET hot2\r\n")
        assert read(s, 2) == b"$3\r\nhot\r\n$4\r\nhot2\r\n"
        assert read(other, 1) == b"$4\r\nhot2\r\n"
        own_server.resume()
        assert read(s, 2) == b"$4\r\ncold\r\n$3\r\nhot\r\n", "each reply is to its request"
        assert ask(s, b"GET cold\r\n") == b"$4\r\ncold\r\n"
        assert ask(other, b"SET hot2 new\r\n") == b"+OK\r\n"
        assert ask(other, b"GET hot2\r\n") == b"$3\r\nnew\r\n"


def read(s: Any, count: int) -> bytes:
    """So many strings."""
    got = b""
    while got.count(b"\r\n") < 2 * count:
        piece = s.recv(4096)
        assert piece
        got += piece
    return got
