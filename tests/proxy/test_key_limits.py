"""A rule may limit what each of its hot keys has upstream."""

import contextlib
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import ask, connect, is_up, stats

Eventually = Callable[..., Any]


def rule(plan: list[str], **limits: int) -> dict[str, Any]:
    level = {"metric": "ops", "enter_per_s": 5}
    return {
        "name": "feeds",
        "match": {"prefix": "hot"},
        "levels": [level],
        "min_hot_ms": 60_000,
        "plan": plan,
        **limits,
    }


def until_hot(proxy: Any, s: Any, eventually: Eventually) -> None:
    def is_hot() -> bool:
        ask(s, b"GET hot\r\n")
        return '"key":"hot"' in proxy.hot().replace(" ", "")

    eventually(is_hot)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_hot_key_has_so_many_reads_per_second_and_others_are_not_limited(
    valkey: str, proxy_factory: Any, eventually: Eventually, shards: int
) -> None:
    proxy = proxy_factory(valkey, shards=shards, rules=[rule([], reads_per_s_max=40)])
    eventually(lambda: is_up(proxy))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(proxy)) for _ in range(8)]
        until_hot(proxy, sockets[0], eventually)
        answers = []
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            for s in sockets:
                answers.append(ask(s, b"GET hot\r\n"))
                assert ask(s, b"GET cold\r\n") == b"$-1\r\n"
                assert ask(s, b"SET hot2 v\r\n") == b"+OK\r\n"
        good = answers.count(b"$-1\r\n")
        # What two seconds give, and what one more may have passed at once.
        assert 40 / shards <= good <= 40 * 3 + 8, "all clients may meet one shard"
        text = next(a for a in answers if a != b"$-1\r\n")
        assert re.fullmatch(
            rb"-OVERLOAD keyheat: rule 'feeds' lets each of its hot keys have 40 reads per second "
            rb"\(reads_per_s_max\); this read was not sent, try again later\r\n",
            text,
        )


def test_a_hot_key_has_so_many_reads_at_once(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, shards=1, rules=[rule([], concurrency_max=3)])
    eventually(lambda: is_up(proxy))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(proxy)) for _ in range(5)]
        until_hot(proxy, sockets[0], eventually)
        own_server.pause()
        for s in sockets:
            s.sendall(b"GET hot\r\n")
        for s in sockets[3:]:
            assert b"3 reads at once (concurrency_max)" in s.recv(300)
        own_server.resume()
        assert [s.recv(100) for s in sockets[:3]] == [b"$-1\r\n"] * 3
        assert ask(sockets[4], b"GET hot\r\n") == b"$-1\r\n", "nothing is left behind"


def test_answers_from_memory_are_not_limited(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    limited = rule(["local_cache"], reads_per_s_max=200)
    proxy = proxy_factory(own_server.address, shards=1, rules=[limited], max_staleness_ms=2_000)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        ask(s, b"SET hot v\r\n")
        until_hot(proxy, s, eventually)

        def is_answered_here() -> bool:
            time.sleep(0.02)
            before = stats(proxy)["local_hits"]
            ask(s, b"GET hot\r\n")
            return stats(proxy)["local_hits"] > before

        eventually(is_answered_here)
        assert {ask(s, b"GET hot\r\n") for _ in range(2_000)} == {b"$1\r\nv\r\n"}


@pytest.mark.parametrize("request_", [b"MGET hot cold\r\n", b"EXISTS cold hot\r\n"])
@pytest.mark.parametrize("servers", ["one", "cluster"])
def test_a_read_of_several_keys_is_one_of_each(
    proxy_factory: Any,
    eventually: Eventually,
    request: pytest.FixtureRequest,
    servers: str,
    request_: bytes,
) -> None:
    upstream = (
        request.getfixturevalue("valkey") if servers == "one" else request.getfixturevalue("cluster").url
    )
    proxy = proxy_factory(upstream, shards=1, rules=[rule([], reads_per_s_max=40)])
    eventually(lambda: is_up(proxy))
    with connect(proxy) as s:
        until_hot(proxy, s, eventually)
        answers = []
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            answers.append(ask(s, request_))
            assert not ask(s, b"MGET cold cold2\r\n").startswith(b"-")
        turned_back = [a for a in answers if a.startswith(b"-OVERLOAD keyheat: rule 'feeds' lets")]
        assert 40 <= len(answers) - len(turned_back) <= 40 * 3 + 8
        assert len(turned_back) > 100
