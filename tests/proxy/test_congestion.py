"""What is on its way to a node at once is limited; what is too much waits in line, or is turned back."""

import contextlib
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import ask, client, connect, is_up, stats
from tests.proxy.test_breaker import burn

Eventually = Callable[..., Any]
TIGHT = {
    "shards": 1,
    "local_cache": False,
    "congestion_limit_min": 2,
    "congestion_limit_max": 4,
    "congestion_queue_max": 4,
    "congestion_queue_timeout_ms": 20_000,
    "breaker_silence_ms": 20_000,
}


def lines(s: Any, count: int) -> bytes:
    """Everything up to so many line ends."""
    got = b""
    while got.count(b"\r\n") < count:
        got += s.recv(65536)
    return got


def all_asking(stack: contextlib.ExitStack, proxy: Any, count: int, request: bytes) -> list[socket.socket]:
    """So many clients, each of which has sent a request and not yet looked for its reply."""
    waiting = [stack.enter_context(connect(proxy)) for _ in range(count)]
    for each in waiting:
        each.sendall(request)
    return waiting


def test_what_finds_the_line_full_is_turned_back_at_once_and_the_rest_is_served(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, **TIGHT)
    eventually(lambda: is_up(proxy))
    with contextlib.ExitStack() as stack:
        own_server.pause()
        waiting = all_asking(stack, proxy, 8, b"INCR n\r\n")
        time.sleep(0.2)
        late = stack.enter_context(connect(proxy))
        for request in (b"GET n\r\n", b"SET n 7\r\n"):
            started = time.monotonic()
            answer = ask(late, request)
            assert time.monotonic() - started < 0.1
            assert re.fullmatch(
                rb"-OVERLOAD keyheat: upstream \S+ is crowded: 8 requests are on their way there or in line; "
                rb"this one was not sent, try again later\r\n",
                answer,
            )
        assert stats(proxy)["turned_back"] == 2
        own_server.resume()
        assert sorted(lines(each, 1) for each in waiting) == [f":{n}\r\n".encode() for n in range(1, 9)]
        assert ask(late, b"GET n\r\n") == b"$1\r\n8\r\n"


def test_a_client_with_requests_on_their_way_is_held_back_and_not_turned_back(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, **TIGHT)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as loads, connect(proxy) as other:
        own_server.pause()
        loads.sendall(b"INCR n\r\n" * 500)
        time.sleep(0.2)
        other.sendall(b"PING\r\nGET x\r\nPING\r\n")
        answer = lines(other, 3)
        assert re.fullmatch(rb"\+PONG\r\n-OVERLOAD [^\r]*\r\n\+PONG\r\n", answer), "it keeps its place"
        own_server.resume()
        assert lines(loads, 500) == b"".join(f":{n}\r\n".encode() for n in range(1, 501))


def test_who_waits_too_long_in_line_is_turned_back_and_has_not_run(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    tight = TIGHT | {"congestion_queue_timeout_ms": 200, "congestion_limit_min": 1, "congestion_limit_max": 1}
    proxy = proxy_factory(own_server.address, **tight)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as first, connect(proxy) as second:
        own_server.pause()
        first.sendall(b"INCR n\r\n")
        time.sleep(0.05)
        second.sendall(b"INCR n\r\n")
        assert b"has waited 200 ms in line and was not sent" in second.recv(300)
        own_server.resume()
        assert first.recv(100) == b":1\r\n"
        eventually(lambda: ask(second, b"GET n\r\n") == b"$1\r\n1\r\n")


def test_what_waits_in_line_is_sent_in_order(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    tight = TIGHT | {"congestion_limit_min": 1, "congestion_limit_max": 1, "congestion_queue_max": 1000}
    proxy = proxy_factory(own_server.address, **tight)
    eventually(lambda: is_up(proxy))
    with connect(proxy) as one, connect(proxy) as two:
        for s in (one, two):
            s.sendall(b"".join(b"RPUSH %d %d\r\n" % (id(s), n) for n in range(300)))
        for s in (one, two):
            lines(s, 300)
            s.sendall(b"LRANGE %d 0 -1\r\n" % id(s))
            got = re.findall(rb"\$\d+\r\n(\d+)\r\n", lines(s, 601))
            assert [int(n) for n in got] == list(range(300))


@pytest.mark.parametrize("congestion", [True, False])
def test_a_healthy_node_turns_nobody_back(
    valkey: str, proxy_factory: Any, eventually: Eventually, congestion: bool
) -> None:
    proxy = proxy_factory(valkey, local_cache=False, congestion=congestion)
    eventually(lambda: is_up(proxy))
    failures: list[object] = []

    def load(name: int) -> None:
        with client(proxy) as r:
            for _ in range(3):
                pipe = r.pipeline(transaction=False)
                for n in range(2_000):
                    pipe.set(f"{name}:{n}", n)
                try:
                    pipe.execute()
                except redis.RedisError as error:
                    failures.append(error)

    threads = [threading.Thread(target=load, args=(n,)) for n in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures
    assert stats(proxy)["turned_back"] == 0


def test_without_congestion_control_nobody_is_turned_back(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, **TIGHT, congestion=False)
    eventually(lambda: is_up(proxy))
    with contextlib.ExitStack() as stack:
        own_server.pause()
        waiting = all_asking(stack, proxy, 30, b"INCR n\r\n")
        time.sleep(0.2)
        own_server.resume()
        assert len({lines(each, 1) for each in waiting}) == 30


def test_sessions_are_not_limited(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, **TIGHT)
    eventually(lambda: is_up(proxy))
    with contextlib.ExitStack() as stack:
        waiting = all_asking(stack, proxy, 20, b"BLPOP l 5\r\n")
        pushes = stack.enter_context(connect(proxy))
        eventually(lambda: own_server.client().info("clients")["blocked_clients"] == 20)
        for n in range(20):
            assert ask(pushes, b"RPUSH l v\r\n").startswith(b":"), n
        assert all(lines(each, 5).endswith(b"v\r\n") for each in waiting)


def metrics(proxy: Any) -> dict[str, float]:
    """Series and values, the node's address left out."""
    with urllib.request.urlopen(f"http://{proxy.http}/metrics") as page:
        text = page.read().decode()
    for name in re.findall(r"^(keyheat_node_\w+)\{", text, re.MULTILINE):
        assert f"# HELP {name} " in text
        assert f"# TYPE {name} " in text
    pairs = re.findall(r"^(keyheat_\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    return {re.sub(r'node="[^"]*",?', "", name): float(value) for name, value in pairs}


def test_metrics_say_of_each_node_what_is_on_its_way_in_line_and_turned_back(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.address, **(TIGHT | {"breaker_silence_ms": 600}))
    eventually(lambda: is_up(proxy))
    with contextlib.ExitStack() as stack:
        own_server.pause()
        all_asking(stack, proxy, 9, b"GET n\r\n")
        eventually(lambda: metrics(proxy)["keyheat_node_in_flight{}"] == 4)
        seen = metrics(proxy)
        assert seen["keyheat_node_queued{}"] == 4
        assert seen["keyheat_node_limit{}"] == 4
        assert seen["keyheat_node_turned_back_total{}"] == 1
        assert seen['keyheat_node_breaker_shards{state="closed"}'] == 1
        # Once it is silent for good, those in line are told.
        eventually(lambda: metrics(proxy)["keyheat_node_turned_back_total{}"] == 5)
        seen = metrics(proxy)
        assert seen["keyheat_node_queued{}"] == 0
        assert seen['keyheat_node_breaker_shards{state="closed"}'] == 0
        assert seen["keyheat_node_breaker_opened_total{}"] >= 1
        own_server.resume()
        eventually(lambda: metrics(proxy)['keyheat_node_breaker_shards{state="closed"}'] == 1)
        assert metrics(proxy)["keyheat_node_in_flight{}"] == 0


def test_the_limit_follows_how_long_the_node_takes_and_comes_back(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(
        own_server.address, shards=1, congestion_limit_min=2, congestion_limit_max=32, breaker_slow_rate=2
    )
    eventually(lambda: is_up(proxy))

    def load(request: bytes, stop: threading.Event) -> None:
        with connect(proxy) as s:
            while not stop.is_set():
                s.sendall(request)
                lines(s, 1)

    @contextlib.contextmanager
    def all_send(request: bytes) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=load, args=(request, stop)) for _ in range(30)]
        for each in threads:
            each.start()
        try:
            yield
        finally:
            stop.set()
            for each in threads:
                each.join()

    with connect(proxy) as s:
        # How long it takes in calm, over a whole window.
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            s.sendall(b"INCR n\r\n")
            lines(s, 1)
    with all_send(burn(0.02)):
        eventually(lambda: metrics(proxy)["keyheat_node_limit{}"] < 16)
    with all_send(b"INCR n\r\n"):
        eventually(lambda: metrics(proxy)["keyheat_node_limit{}"] > 24)
