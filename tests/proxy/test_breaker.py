"""Nodes that fail are left alone: requests for them are answered at once, until they work again."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import ask, connect, ready, stats
from tests.proxy.relay import Relay

Eventually = Callable[..., Any]
FOREVER = b"EVAL 'while true do end' 0\r\n"


def burn(seconds: float) -> bytes:
    """A script that keeps the server busy for about so long (its clock stands still meanwhile)."""
    return f"EVAL 'local x = 0 for i = 1, {int(seconds * 7e7)} do x = x + i end return 1' 0\r\n".encode()


@contextlib.contextmanager
def busy_script(server: EmbeddedServer) -> Iterator[None]:
    """A server that answers `BUSY` to everything."""
    host, port = server.address.rsplit(":", 1)
    with server.client() as direct, socket.create_connection((host, int(port))) as runs:
        direct.config_set("busy-reply-threshold", 20)
        runs.sendall(FOREVER)
        time.sleep(0.1)
        yield
        direct.execute_command("SCRIPT KILL")


@contextlib.contextmanager
def hung(server: EmbeddedServer, proxy: Any) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A server that hangs, and was noticed to: a client that waits for it, and another."""
    with connect(proxy) as waits, connect(proxy) as s:
        server.pause()
        waits.sendall(b"GET k\r\n")
        time.sleep(0.5)
        yield waits, s


def test_a_node_that_answers_nothing_is_left_alone_and_served_from_again_when_it_does(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, breaker_silence_ms=300), eventually)
    with hung(own_server, proxy) as (waits, s):
        started = time.monotonic()
        answer = ask(s, b"GET k\r\n")
        assert time.monotonic() - started < 0.1
        assert re.fullmatch(
            rb"-ERR keyheat: upstream \S+ has answered nothing for 300 ms; (next try in \d+ ms|it is being "
            rb"tried now)\r\n",
            answer,
        )
        assert ask(s, b"SET k v\r\n").startswith(b"-ERR keyheat: ")
        assert stats(proxy)["turned_back"] >= 1
        own_server.resume()
        assert waits.recv(100) == b"$-1\r\n", "what was sent is answered"
        eventually(lambda: ask(s, b"SET k v\r\n") == b"+OK\r\n", timeout_s=3)


def test_a_node_that_hangs_is_left_alone_for_as_long_as_it_does(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, breaker_silence_ms=300), eventually)
    sessions = (b"BLPOP q 1", b"WATCH k", b"SELECT 2", b"SUBSCRIBE c", b"CLIENT TRACKING ON", b"MONITOR")
    with hung(own_server, proxy) as (waits, s):
        until = time.monotonic() + 6.5  # its kernel lets connections in, whose set-up is given up after 5 s
        while time.monotonic() < until:
            for request in (b"SET k v", *sessions):
                started = time.monotonic()
                with connect(proxy) as session:
                    answer = ask(session, request + b"\r\n")
                assert time.monotonic() - started < 1, request
                assert answer.startswith(b"-ERR keyheat: upstream "), request
            time.sleep(0.2)
        own_server.resume()
        assert waits.recv(100) == b"$-1\r\n"
        eventually(lambda: ask(s, b"SET k v\r\n") == b"+OK\r\n", timeout_s=3)


def test_a_connection_that_is_dead_while_its_node_lives_is_replaced(
    relay: Relay, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(
        proxy_factory(relay.address, shards=1, breaker_silence_ms=300, local_cache=False), eventually
    )
    with connect(proxy) as waits, connect(proxy) as s:
        relay.freeze_open()
        waits.sendall(b"SET k v\r\n")
        eventually(lambda: ask(s, b"PING\r\n") == b"+PONG\r\n")
        assert b"the command may have run" in waits.recv(300)
        eventually(lambda: ask(s, b"SET k v\r\n") == b"+OK\r\n", timeout_s=5)


def test_a_node_that_says_busy_to_everything_is_left_alone_until_it_no_longer_does(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, breaker_calls_min=5), eventually)
    with connect(proxy) as s:
        for _ in range(3):
            ask(s, b"GET k\r\n")
        with busy_script(own_server):
            assert ask(s, b"GET k\r\n").startswith(b"-BUSY ")
            text = eventually(lambda: found(ask(s, b"GET k\r\n"), b"-ERR keyheat: upstream "))
            assert b"(lastly: BUSY)" in text
        eventually(lambda: ask(s, b"GET k\r\n") == b"$-1\r\n")
        # Nobody is turned back for long after it.
        time.sleep(0.3)
        assert {ask(s, b"GET k\r\n") for _ in range(50)} == {b"$-1\r\n"}


def test_a_node_that_loads_is_left_alone_until_it_has_loaded(
    server_binary: str, proxy_factory: Any, eventually: Eventually
) -> None:
    config = {"enable-debug-command": "yes", "loading-process-events-interval-bytes": "1024"}
    with EmbeddedServer(config, binary=server_binary) as server, server.client() as direct:
        direct.mset({f"k{n}": "v" * 100 for n in range(1_500)})
        proxy = ready(proxy_factory(server.address, shards=1, breaker_calls_min=5), eventually)
        direct.config_set("key-load-delay", 1000)
        reload = threading.Thread(target=direct.execute_command, args=("DEBUG", "RELOAD"))
        with connect(proxy) as s:
            ask(s, b"GET k1\r\n")
            reload.start()
            own = eventually(lambda: found(ask(s, b"GET k1\r\n"), b"-LOADING "))
            assert b"keyheat" not in own
            text = eventually(lambda: found(ask(s, b"GET k1\r\n"), b"-LOADING keyheat: upstream "))
            assert re.search(rb"is failing: of \d+ requests \d+ failed \(lastly: LOADING\)", text), text
            assert reload.is_alive()
            eventually(lambda: ask(s, b"GET k1\r\n").startswith(b"$100\r\n"))
            assert stats(proxy)["turned_back"] >= 1
        reload.join()


def found(answer: bytes, start: bytes) -> bytes | None:
    return answer if answer.startswith(start) else None


def test_without_the_breaker_what_the_node_says_is_passed_on(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, breaker=False, breaker_calls_min=1), eventually)
    with connect(proxy) as s, busy_script(own_server):
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            assert ask(s, b"GET k\r\n").startswith(b"-BUSY ")


def test_errors_of_commands_open_nothing(valkey: str, proxy_factory: Any, eventually: Eventually) -> None:
    proxy = ready(proxy_factory(valkey, shards=1, breaker_calls_min=1, breaker_error_rate=0.01), eventually)
    with connect(proxy) as s:
        ask(s, b"SET k v\r\n")
        deadline = time.monotonic() + 0.4
        while time.monotonic() < deadline:
            assert ask(s, b"LPUSH k v\r\n").startswith(b"-WRONGTYPE")
            assert ask(s, b"XGROUP CREATE k g\r\n").startswith(b"-ERR")
    assert stats(proxy)["turned_back"] == 0


def test_a_node_that_is_slow_throughout_is_left_alone(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(
        proxy_factory(own_server.address, shards=1, breaker_slow_ms=5, breaker_calls_min=4), eventually
    )
    with connect(proxy) as s:
        text = eventually(lambda: found(ask(s, burn(0.05)), b"-ERR keyheat: upstream "))
        assert re.search(rb"is failing: .* of \d+ answers \d+ were slow", text)
        eventually(lambda: ask(s, b"SET k v\r\n") == b"+OK\r\n")


def test_one_slow_script_turns_nobody_back(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, breaker_slow_ms=100), eventually)
    answers: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        with connect(proxy) as s:
            while not stop.is_set():
                answers.append(ask(s, b"GET k\r\n"))

    threads = [threading.Thread(target=read) for _ in range(30)]
    for each in threads:
        each.start()
    with connect(proxy) as s:
        assert ask(s, burn(2)) == b":1\r\n"
    time.sleep(0.3)
    stop.set()
    for each in threads:
        each.join()
    assert set(answers) == {b"$-1\r\n"}
    assert stats(proxy)["turned_back"] == 0


def test_a_node_that_takes_no_more_connections_is_served_from_on_those_there_are(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1), eventually)
    with own_server.client() as direct, connect(proxy) as s, connect(proxy) as blocks:
        assert ask(s, b"SET k v\r\n") == b"+OK\r\n"
        direct.config_set("maxclients", 1)
        assert b"cannot be reached" in ask(blocks, b"BLPOP l 1\r\n")
        for _ in range(100):
            assert ask(s, b"GET k\r\n") == b"$1\r\nv\r\n"
        direct.config_set("maxclients", 1000)

    def blocks_well() -> bool:
        with connect(proxy) as s:
            return ask(s, b"BLPOP l 0.01\r\n").startswith(b"*-1")

    eventually(blocks_well)


def test_a_session_goes_on_while_its_node_is_left_alone(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, breaker_silence_ms=300), eventually)
    with connect(proxy) as session, connect(proxy) as waits:
        assert ask(session, b"MULTI\r\n") == b"+OK\r\n"
        assert ask(session, b"SET k v\r\n") == b"+QUEUED\r\n"
        own_server.pause()
        waits.sendall(b"GET k\r\n")
        time.sleep(0.5)
        session.sendall(b"EXEC\r\n")
        own_server.resume()
        assert session.recv(100) == b"*1\r\n+OK\r\n"


def test_a_request_that_is_turned_back_keeps_its_place(
    own_cluster_of_two: tuple[Any, Any], proxy_factory: Any, eventually: Eventually
) -> None:
    cluster, (dead, alive) = own_cluster_of_two
    proxy = ready(proxy_factory(cluster.url, shards=1, breaker_silence_ms=300), eventually)
    keys = [f"k{i}" for i in range(50)]
    lost = next(k for k in keys if cluster.owner(k) is dead)
    kept = next(k for k in keys if cluster.owner(k) is alive)
    with connect(proxy) as s, connect(proxy) as waits:
        assert ask(s, f"SET {kept} v\r\n".encode()) == b"+OK\r\n"
        assert ask(s, f"SET {lost} v\r\n".encode()) == b"+OK\r\n"
        dead.pause()
        waits.sendall(f"GET {lost}\r\n".encode())
        time.sleep(0.5)
        s.sendall(f"GET {kept}\r\nGET {lost}\r\nGET {kept}\r\n".encode())
        got = b""
        while got.count(b"\r\n") < 5:
            got += s.recv(4096)
        dead.resume()
        assert re.fullmatch(rb"\$1\r\nv\r\n-ERR keyheat: upstream [^\r]*\r\n\$1\r\nv\r\n", got), got


@pytest.fixture
def own_cluster_of_two(server_binary: str) -> Iterator[tuple[Any, Any]]:
    from keyheat.server.cluster import EmbeddedCluster  # noqa: PLC0415

    with EmbeddedCluster(3, node_timeout_ms=60_000, binary=server_binary) as running:
        yield running, running.primaries[:2]


def test_a_hung_node_that_is_killed_and_started_again_is_served_from_at_once(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, breaker_silence_ms=300), eventually)
    with hung(own_server, proxy) as (waits, s):
        time.sleep(5.5)  # it was asked over a connection of its own, which was given up
        own_server.kill()
        assert b"lost the connection" in waits.recv(300)
        own_server.restart()
        answers = []

        def serves() -> bool:
            answers.append(ask(s, b"SET k v\r\n"))
            return answers[-1] == b"+OK\r\n"

        eventually(serves)
        assert not any(b"no longer needed" in answer for answer in answers)
