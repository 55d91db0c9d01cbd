"""What one client may take: time, memory, the length of a request."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyheat.server.cluster import EmbeddedCluster
from tests.conftest import ProxyFactory
from tests.proxy.proxies import ask, connect, ready, stats

Eventually = Callable[..., Any]
TOO_LONG = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$20971520\r\n" + b"x" * (20 << 20) + b"\r\n"
TOLD_SO = b"-ERR keyheat: the request is longer than request_max_bytes, 100000\r\n"


def client_of(proxy: Any, **options: Any) -> "redis.Redis":
    return redis.Redis(port=int(proxy.listen.rsplit(":", 1)[1]), **options)


def test_a_client_that_is_idle_is_cut_and_one_that_waits_is_not(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually
) -> None:
    proxy = proxy_factory(valkey, client_idle_timeout_s=1, shards=1)
    with contextlib.ExitStack() as stack:
        idle, busy, blocked, subscribed, half = (stack.enter_context(connect(proxy)) for _ in range(5))
        idle.sendall(b"PING\r\n")
        assert idle.recv(100) == b"+PONG\r\n"
        blocked.sendall(b"BLPOP nothing 0\r\n")
        subscribed.sendall(b"SUBSCRIBE news\r\n")
        half.sendall(b"MULTI\r\n")
        began = time.monotonic()
        while stats(proxy)["clients_idle"] < 2:
            busy.sendall(b"PING\r\n")
            assert busy.recv(100) == b"+PONG\r\n"
            assert time.monotonic() - began < 10
            time.sleep(0.05)
        assert time.monotonic() - began >= 1
        assert idle.recv(100) == b""
        time.sleep(1.5)
        with client_of(proxy) as client:
            assert client.rpush("nothing", "v") == 1
            client.publish("news", "hello")
        assert b"nothing" in blocked.recv(1000)
        eventually(lambda: b"hello" in subscribed.recv(1000))


def test_nobody_is_idle_for_too_long_by_default(proxy_factory: ProxyFactory, valkey: str) -> None:
    proxy = proxy_factory(valkey, shards=1)
    with connect(proxy) as stream:
        time.sleep(1.2)
        stream.sendall(b"PING\r\n")
        assert stream.recv(100) == b"+PONG\r\n"


def test_a_client_that_does_not_read_is_cut_for_its_own_limit(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually
) -> None:
    proxy = proxy_factory(valkey, client_output_max_bytes=1_000_000, shards=1)
    with client_of(proxy) as client:
        client.set("big", b"x" * 20_000_000)
        client.set("small", b"x" * 500_000)
        with connect(proxy) as lazy:
            lazy.sendall(b"GET big\r\n")
            eventually(lambda: stats(proxy)["clients_cut"] == 1)
        with connect(proxy) as listener:
            listener.sendall(b"SUBSCRIBE news\r\n")
            assert listener.recv(1000)

            def is_cut() -> bool:
                client.publish("news", b"x" * 500_000)
                return stats(proxy)["clients_cut"] == 2

            eventually(is_cut)
        assert client.get("small") == b"x" * 500_000
        assert stats(proxy)["clients_cut"] == 2


def test_a_request_that_is_too_long_is_told_so(proxy_factory: ProxyFactory, valkey: str) -> None:
    proxy = proxy_factory(valkey, request_max_bytes=100_000, shards=1)
    with client_of(proxy) as client:
        assert client.set("k", b"x" * 99_000)
        with connect(proxy) as stream:
            stream.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000\r\n")
            said = stream.recv(1000)
            assert b"-ERR keyheat: the request is longer than request_max_bytes, 100000\r\n" in said
            assert stream.recv(1000) == b""
        assert client.strlen("k") == 99_000


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_one_in_the_middle_of_a_request_that_is_too_long_hears_it_too(
    proxy_factory: ProxyFactory, valkey: str, kind: str
) -> None:
    with TemporaryDirectory(prefix="kh-") as folder:
        proxy = proxy_factory(valkey, request_max_bytes=100_000, shards=1, unix_socket=f"{folder}/s")
        with connect(proxy) if kind == "tcp" else socket.socket(socket.AF_UNIX) as stream:
            if kind == "unix":
                stream.settimeout(15)
                stream.connect(f"{folder}/s")
            stream.sendall(b"PING\r\n" + TOO_LONG)
            with stream.makefile("rb") as said:
                assert said.read() == b"+PONG\r\n" + TOLD_SO


def test_one_that_goes_on_sending_is_let_go_and_counts_until_then(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually
) -> None:
    proxy = proxy_factory(valkey, request_max_bytes=100_000, shards=1, clients_max=1)
    with connect(proxy) as stream:
        stream.sendall(TOO_LONG)
        began = time.monotonic()
        assert stream.recv(1000) == TOLD_SO
        with connect(proxy) as other:
            assert b"max number of clients" in other.recv(1000)
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 10:
                stream.sendall(b"x")
                time.sleep(0.01)
        assert 0.5 < time.monotonic() - began < 3
    eventually(lambda: stats(proxy)["clients"] == 0)
    with client_of(proxy) as client:
        assert client.ping()


def test_a_drain_does_not_wait_for_those_that_were_told(proxy_factory: ProxyFactory, valkey: str) -> None:
    proxy = proxy_factory(valkey, request_max_bytes=100_000, shards=1)
    with connect(proxy) as stream:
        stream.sendall(TOO_LONG)
        assert stream.recv(1000) == TOLD_SO
        assert stats(proxy)["clients"] == 1
        began = time.monotonic()
        assert proxy.drain(5.0)
        assert time.monotonic() - began < 0.7


@pytest.mark.parametrize(
    "settings",
    [{"request_max_bytes": 10}, {"client_idle_timeout_s": 10**9}, {"client_output_max_bytes": -1}],
)
def test_a_mistake_is_named(proxy_factory: ProxyFactory, valkey: str, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings)) if min(settings.values()) > 0 else "usize"):
        proxy_factory(valkey, **settings)


@pytest.mark.parametrize("kind", ["forwarded", "cached"])
def test_a_pipeline_may_be_sent_whole_before_a_reply_is_read(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually, kind: str
) -> None:
    levels = [{"metric": "reads", "enter_per_s": 1}]
    rules = [{"name": "all", "match": {"any": True}, "levels": levels, "plan": ["local_cache"]}]
    proxy = proxy_factory(valkey, rules=rules if kind == "cached" else None)
    value = b"x" * 200_000
    with client_of(proxy) as client, client.pipeline(transaction=False) as pipe:
        client.set("big", value)
        if kind == "cached":
            eventually(lambda: client.get("big") and stats(proxy)["local_hits"])
        for number in range(300):
            pipe.get("big")
            pipe.set(f"filler:{number}", value)
        # 60 MB each way.
        assert pipe.execute() == [value, True] * 300
        assert stats(proxy)["clients_cut"] == 0
        with connect(proxy) as late:
            late.settimeout(10)
            late.sendall(b"GET big\r\n" * 500 + b"PING\r\n")
            time.sleep(0.5)
            read = bytearray()
            while not read.endswith(b"+PONG\r\n"):
                read += late.recv(1 << 20)
            assert len(read) == 500 * (len(value) + 11) + 7


def cached(proxy_factory: ProxyFactory, upstream: str, eventually: Eventually, **settings: Any) -> Any:
    """A proxy with one shard that answers `big` from memory."""
    levels = [{"metric": "reads", "enter_per_s": 1}]
    rule = {
        "name": "all",
        "match": {"any": True},
        "levels": levels,
        "plan": ["local_cache"],
        "min_hot_ms": 60_000,
    }
    proxy = proxy_factory(upstream, rules=[rule], shards=1, max_staleness_ms=5_000, **settings)
    with client_of(proxy) as client:
        client.set("big", b"x" * 500_000)
    with connect(proxy) as stream:

        def is_local() -> bool:
            before = stats(proxy)["local_hits"]
            stream.sendall(b"GET big\r\n")
            left = 500_000 + 11
            while left:
                left -= len(stream.recv(left))
            return stats(proxy)["local_hits"] > before

        eventually(is_local)
    return proxy


def stays_small(proxy: Any, seconds: float) -> None:
    """The proxy holds little for that long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert stats(proxy)["buffer_bytes"] < 16 << 20
        time.sleep(0.01)


def read_on(stream: socket.socket, left: int) -> None:
    """So many bytes come, and no others."""
    while left:
        piece = stream.recv(1 << 20)
        assert piece
        left -= len(piece)


def test_a_client_that_pauses_in_a_pipeline_of_local_replies_goes_on(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually
) -> None:
    proxy = cached(proxy_factory, valkey, eventually, buffers_max_bytes=32 << 20)
    with connect(proxy) as late:
        late.sendall(b"GET big\r\n" * 400 + b"PING\r\n")
        stays_small(proxy, 1)
        count = 0
        end = b""
        while end != b"+PONG\r\n":
            piece = late.recv(1 << 20)
            assert piece
            count += len(piece)
            end = (end + piece)[-7:]
    assert count == 400 * (500_000 + 11) + 7
    assert stats(proxy)["clients_cut"] == 0


@pytest.mark.parametrize("limit", ["buffers_max_bytes", "client_output_max_bytes"])
def test_a_client_that_asks_for_much_at_once_and_reads_slowly_is_held_back_and_not_cut(
    proxy_factory: ProxyFactory, valkey: str, limit: str
) -> None:
    proxy = proxy_factory(valkey, shards=1, **{limit: 32 << 20})
    with client_of(proxy) as client:
        client.set("big", b"x" * 500_000)
    with connect(proxy) as late:
        for _ in range(200):  # what writes are answered says nothing of reads
            assert ask(late, b"SET small 1\r\n") == b"+OK\r\n"
        late.sendall(b"GET big\r\n" * 400 + b"PING\r\n")
        stays_small(proxy, 0.7)
        read_on(late, 400 * (500_000 + 11) + 7)
    assert stats(proxy)["clients_cut"] == 0


def test_a_transaction_that_selects_a_database_is_bounded_as_others_are(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually
) -> None:
    proxy = proxy_factory(valkey, shards=1, buffers_max_bytes=16 << 20)
    with client_of(proxy) as client:
        client.set("big", b"x" * (1 << 20))
    half = b"y" * 1_500_000
    with connect(proxy) as slow, connect(proxy) as other:
        other.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3000000\r\n" + half)
        slow.sendall(b"MULTI\r\nSELECT 0\r\n" + b"GET big\r\n" * 60 + b"EXEC\r\n")
        eventually(lambda: stats(proxy)["clients_cut"] == 1)
        other.sendall(half + b"\r\n")
        assert other.recv(100) == b"+OK\r\n"


def test_local_replies_behind_one_that_is_late_are_not_made_before_it_comes(
    proxy_factory: ProxyFactory, own_server: Any, eventually: Eventually
) -> None:
    proxy = cached(proxy_factory, own_server.url, eventually, buffers_max_bytes=32 << 20)
    with connect(proxy) as stream, own_server.client() as direct:
        direct.execute_command("CLIENT", "PAUSE", 1_000, "ALL")
        stream.sendall(b"GET cold\r\n" + b"GET big\r\n" * 200)
        stays_small(proxy, 0.7)
        read_on(stream, 5 + 200 * (500_000 + 11))
    assert stats(proxy)["clients_cut"] == 0


def test_a_client_that_says_all_and_its_end_before_it_reads_is_answered_whole(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually
) -> None:
    proxy = cached(proxy_factory, valkey, eventually)
    value = b"x" * 500_000
    with connect(proxy) as late:
        for _ in range(60):
            late.sendall(b"GET big\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$500000\r\n" + value + b"\r\n")
        late.shutdown(socket.SHUT_WR)
        time.sleep(0.5)
        with late.makefile("rb") as replies:
            assert replies.read() == (b"$500000\r\n" + value + b"\r\n+OK\r\n") * 60


def resident() -> int:
    """Bytes of memory that this process, and so the proxy in it, takes."""
    words = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def late_readers(proxy: Any, count: int, requests: bytes) -> Iterator[list[socket.socket]]:
    """Clients that have asked, and do not read yet."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy)) for _ in range(count)]
        for client in clients:
            client.sendall(requests)
        yield clients


def test_many_clients_that_read_late_are_held_back_together(proxy_factory: ProxyFactory, valkey: str) -> None:
    proxy = proxy_factory(valkey, shards=1, buffers_max_bytes=64 << 20)
    with client_of(proxy) as client:
        client.set("page", b"x" * 100_000)
    before = resident()
    with late_readers(proxy, 200, b"GET page\r\n" * 100) as clients:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert resident() - before < 100 << 20
            time.sleep(0.02)
        for late in clients:
            read_on(late, 100 * (100_000 + 11))
    assert stats(proxy)["clients_cut"] == 0


def test_memory_that_a_written_reply_took_is_given_back(proxy_factory: ProxyFactory, valkey: str) -> None:
    proxy = proxy_factory(valkey, shards=1, buffers_max_bytes=64 << 20)
    with client_of(proxy) as client:
        client.set("big", b"x" * (1 << 20))
    before = resident()
    with late_readers(proxy, 200, b"GET big\r\n" * 4):
        time.sleep(1.5)
        assert resident() - before < 160 << 20
        assert stats(proxy)["buffer_bytes"] <= 80 << 20


def many_words(count: int) -> bytes:
    """`SADD` of so many members."""
    members = b"".join(b"$%d\r\n%d\r\n" % (len(str(i)), i) for i in range(count))
    return b"*%d\r\n$4\r\nSADD\r\n$4\r\nmany\r\n" % (count + 2) + members


def test_a_request_has_as_many_words_as_the_server_takes(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(valkey, shards=1), eventually)
    with connect(proxy) as stream:
        stream.sendall(many_words(1_100_000))
        assert stream.recv(100) == b":1100000\r\n"
        assert ask(stream, b"SCARD many\r\n") == b":1100000\r\n"
        assert ask(stream, b"DEL many\r\n") == b":1\r\n"


@pytest.mark.parametrize("words", [2_147_483_647, 20_000])
def test_a_count_of_words_that_is_longer_than_a_request_may_be_is_told_so(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually, words: int
) -> None:
    proxy = ready(proxy_factory(valkey, shards=1, request_max_bytes=100_000), eventually)
    with connect(proxy) as stream:
        assert ask(stream, b"*%d\r\n" % words) == TOLD_SO
        assert stream.recv(100) == b""


def test_words_that_wait_for_the_rest_of_a_request_count_for_what_is_held(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(valkey, shards=1, buffers_max_bytes=8 << 20), eventually)
    with connect(proxy) as stream:
        # Six bytes each, and eight for where it lies.
        shortest = b"*1000000\r\n" + b"$0\r\n\r\n" * 700_000
        with contextlib.suppress(ConnectionError):
            stream.sendall(shortest)
        eventually(lambda: stats(proxy)["clients_cut"] == 1)
    with connect(proxy) as stream:
        assert ask(stream, b"PING\r\n") == b"+PONG\r\n"


@pytest.mark.parametrize("before", [b"", b"BLPOP nothing:here 0\r\n"])
def test_what_clients_have_sent_and_is_not_served_yet_counts(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually, before: bytes
) -> None:
    proxy = proxy_factory(valkey, shards=1, buffers_max_bytes=32 << 20)
    with connect(proxy) as early:
        early.sendall(b"PING\r\n")
        assert early.recv(100) == b"+PONG\r\n"
    memory = resident()
    part = before + b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$20000000\r\n" + b"x" * (8 << 20)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(connect(proxy))
            with contextlib.suppress(ConnectionError):  # it may be the one for which most is held
                client.sendall(part)
        eventually(lambda: stats(proxy)["clients_cut"] >= 10 and stats(proxy)["buffer_bytes"] <= 32 << 20)
        assert resident() - memory < 80 << 20


def test_nobody_is_cut_for_what_others_have_on_its_way(
    proxy_factory: ProxyFactory, own_server: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(own_server.url, shards=1, buffers_max_bytes=8 << 20)
    request = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$500000\r\n" + b"x" * 500_000 + b"\r\n"
    with contextlib.ExitStack() as stack:
        small = [stack.enter_context(connect(proxy)) for _ in range(10)]
        writers = [stack.enter_context(connect(proxy)) for _ in range(40)]
        assert ask(small[0], b"GET a\r\n") == b"$-1\r\n"
        own_server.pause()
        for client in small:
            client.sendall(b"GET a\r\n")
        for client in writers:
            before = stats(proxy)["forwarded"]
            client.sendall(request)
            eventually(lambda n=before: stats(proxy)["forwarded"] > n)  # in part it counts for its client
        eventually(lambda: stats(proxy)["buffer_bytes"] > 16 << 20)
        time.sleep(0.5)
        own_server.resume()
        assert [client.recv(100) for client in small] == [b"$-1\r\n"] * 10
        assert stats(proxy)["clients_cut"] == 0, "requests on their way are not taken back"


def test_many_that_take_little_each_are_bounded_together(
    proxy_factory: ProxyFactory, valkey: str, eventually: Eventually
) -> None:
    proxy = proxy_factory(valkey, shards=1, buffers_max_bytes=8 << 20)
    part = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000\r\n" + b"x" * 50_000
    with late_readers(proxy, 20, b"PING\r\n"), late_readers(proxy, 380, part):
        eventually(lambda: stats(proxy)["clients_cut"] > 100)
        eventually(lambda: stats(proxy)["buffer_bytes"] <= 10 << 20)
        assert stats(proxy)["clients"] >= 20
        assert stats(proxy)["clients_cut"] < 380, "not all: only what is too much"


def test_what_was_gathered_for_a_client_that_left_is_given_back(
    proxy_factory: ProxyFactory, server_binary: str, eventually: Eventually
) -> None:
    keys = [f"gathered:{number}" for number in range(32)]
    with EmbeddedCluster(3, binary=server_binary) as cluster:
        proxy = ready(proxy_factory(cluster.url, shards=1, breaker_silence_ms=20_000), eventually)
        with client_of(proxy) as client:
            for key in keys:
                client.set(key, b"x" * (1 << 20))
        cluster.primaries[0].pause()
        with connect(proxy) as gone:
            gone.sendall(f"MGET {' '.join(keys)}\r\n".encode())
            eventually(lambda: stats(proxy)["buffer_bytes"] > 10 << 20)
            gone.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )  # it ends by a reset
        eventually(lambda: stats(proxy)["buffer_bytes"] < 1 << 20, timeout_s=5)
        cluster.primaries[0].resume()


def test_a_reply_that_is_gathered_from_many_nodes_counts_for_its_client(
    proxy_factory: ProxyFactory, cluster: EmbeddedCluster, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(cluster.url, shards=1, buffers_max_bytes=16 << 20), eventually)
    keys = [f"gathered:{number}" for number in range(64)]
    with client_of(proxy) as client, client_of(proxy) as other:
        for key in keys:
            client.set(key, b"x" * (1 << 20))
        assert client.mget(keys[:8]) == [b"x" * (1 << 20)] * 8
        other.ping()
        before = resident()
        client.set_retry(Retry(NoBackoff(), 0))
        with pytest.raises(redis.ConnectionError):
            client.execute_command("MGET", *keys)
        assert other.ping()
        assert resident() - before < 60 << 20
        eventually(lambda: stats(proxy)["buffer_bytes"] < 1 << 20)
        assert stats(proxy)["clients_cut"] == 1
        client.delete(*keys)
