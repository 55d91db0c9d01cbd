"""Sessions, redirects and bounds of the proxy, each as a small experiment against real servers."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import HOT_RULE, heat, ready
from tests.proxy.relay import Relay
from tests.proxy.wire import Command, Wire, ask, command, say, words

Eventually = Callable[..., Any]


@pytest.fixture
def proxy(valkey: str, proxy_factory: Any, eventually: Eventually) -> Any:
    """A proxy of one shard before the shared server."""
    return ready(proxy_factory(valkey, shards=1), eventually)


# --- 1. What follows in one piece behind a command that ends or changes a session.


def test_a_select_inside_multi_holds_once_it_has_run(proxy: Any, wires: Any) -> None:
    # As multi().select(1) of node-redis.
    wire, other = wires(proxy.listen), wires(proxy.listen)
    replies = say(wire, "SET k zero", "MULTI", "SELECT 1", "SET k one", "SELECT 99", "EXEC")
    replies += say(wire, "GET k", "CLIENT INFO")
    assert replies[2:5] == [b"+QUEUED\r\n"] * 3
    assert replies[5].startswith(b"*3\r\n+OK\r\n+OK\r\n-ERR DB index is out of range")
    assert replies[6] == b"$3\r\none\r\n"
    assert b" db=1 " in replies[7]
    assert say(other, "GET k", "SELECT 1", "GET k") == [b"$4\r\nzero\r\n", b"+OK\r\n", b"$3\r\none\r\n"]
    # The connection of the transaction goes to whoever is in its database now.
    assert say(wires(proxy.listen), "MULTI", "GET k", "EXEC")[2] == b"*1\r\n$4\r\nzero\r\n"


@pytest.mark.parametrize("end", ["DISCARD", "EXEC"])
def test_a_select_inside_multi_that_did_not_run_changes_nothing(end: str, proxy: Any, wires: Any) -> None:
    wire, other = wires(proxy.listen), wires(proxy.listen)
    say(wire, "SET k zero", "WATCH k")
    say(other, "SET k other")
    say(wire, "MULTI", "SELECT 1", "SET k one", end)
    assert b" db=0 " in say(wire, "CLIENT INFO")[0]
    assert say(wire, "GET k", "BLPOP none 0.01") == [b"$5\r\nother\r\n", b"*-1\r\n"]
    assert b" db=0 " in say(wire, "CLIENT INFO")[0]


def test_a_select_inside_multi_is_seen_in_a_reply_that_comes_in_pieces(proxy: Any, wires: Any) -> None:
    wire = wires(proxy.listen)
    say(wire, command("SET", "big", "v" * 3_000_000))
    replies = say(wire, "MULTI", "GET big", "SELECT 1", "EXEC")
    assert replies[3] == b"*2\r\n$3000000\r\n" + b"v" * 3_000_000 + b"\r\n+OK\r\n"
    assert b" db=1 " in say(wire, "CLIENT INFO")[0]


def test_a_select_in_a_pipeline_holds_for_what_follows(proxy: Any, valkey: str, wires: Any) -> None:
    assert say(wires(proxy.listen), "SELECT 3", "SET only3 x") == [b"+OK\r\n", b"+OK\r\n"]
    assert ask(valkey, "EXISTS", "only3") == b":0\r\n"


@pytest.mark.parametrize("end", ["EXEC", "DISCARD"])
def test_commands_behind_a_transaction_in_one_pipeline_are_answered(proxy: Any, wires: Any, end: str) -> None:
    replies = say(wires(proxy.listen), "MULTI", "INCR a", end, "INCR b", "MULTI", "INCR c", "EXEC", "PING")
    assert replies[3:] == [b":1\r\n", b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n:1\r\n", b"+PONG\r\n"]


def test_commands_behind_a_blocking_one_run_after_it(proxy: Any, wires: Any) -> None:
    replies = say(wires(proxy.listen), "BLPOP q 0.1", "RPUSH q 1")
    assert replies == [b"*-1\r\n", b":1\r\n"]


def test_a_subscription_is_confirmed_before_the_next_reply(proxy: Any, wires: Any) -> None:
    replies = say(wires(proxy.listen), "SUBSCRIBE c", "PING", "UNSUBSCRIBE c", "GET a")
    assert b"subscribe" in replies[0]
    assert b"pong" in replies[1]
    assert replies[3] == b"$-1\r\n"


# --- 2. Transactions.


@pytest.mark.parametrize("between", ["BLPOP none 0.01", "XREAD STREAMS none 0"])
def test_a_watch_outlives_a_blocking_command_and_never_reaches_another_client(
    proxy: Any, valkey: str, wires: Any, between: str
) -> None:
    watcher = wires(proxy.listen)
    say(watcher, "WATCH k")
    say(watcher, between)
    # Another client that would be given the connection.
    other = wires(proxy.listen)
    ask(valkey, "SET", "k", "1")
    assert say(other, "MULTI", "INCR n", "EXEC")[2] == b"*1\r\n:1\r\n"
    assert say(watcher, "MULTI", "SET k lost", "EXEC")[2] == b"*-1\r\n"


def slot_of(address: str, key: str) -> int:
    """The slot of a key."""
    return int(ask(address, "CLUSTER", "KEYSLOT", key)[1:])


def owner_and_other(cluster: EmbeddedCluster, key: str) -> tuple[str, str]:
    """The node of a key, and another."""
    nodes = [node.address for node in cluster.primaries]
    owner = next(node for node in nodes if ask(node, "EXISTS", key).startswith(b":"))
    return owner, next(node for node in nodes if node != owner)


def node_id(address: str) -> str:
    """A node's id."""
    return ask(address, "CLUSTER", "MYID").split(b"\r\n")[1].decode()


@pytest.fixture
def small_cluster(server_binary: str) -> Iterator[EmbeddedCluster]:
    """Three primaries of this test alone."""
    with EmbeddedCluster(3, binary=server_binary) as running:
        yield running


def give_slot(cluster: EmbeddedCluster, slot: int, to: str) -> None:
    """Move an empty slot at once."""
    nodes = [node.address for node in cluster.primaries]
    for node in sorted(nodes, key=lambda node: node != to):
        ask(node, "CLUSTER", "SETSLOT", str(slot), "NODE", node_id(to))


def test_a_moved_slot_does_not_let_a_transaction_run_in_part(
    small_cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(small_cluster.url, shards=1), eventually)
    owner, other = owner_and_other(small_cluster, "k")
    give_slot(small_cluster, slot_of(owner, "k"), other)
    replies = say(wires(proxy.listen), "MULTI", "SET k part", "EXEC")
    if replies[2].startswith(b"-EXECABORT"):
        assert ask(other, "EXISTS", "k") == b":0\r\n"


def test_a_watch_never_reaches_a_shared_connection(
    small_cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(small_cluster.url, shards=1), eventually)
    owner, other = owner_and_other(small_cluster, "k")
    give_slot(small_cluster, slot_of(owner, "k"), other)
    say(wires(proxy.listen), "WATCH k")
    # Another client's request, on the connection that all share.
    say(wires(proxy.listen), "GET k")
    clients = ask(other, "CLIENT", "LIST").decode().splitlines()
    assert [line for line in clients if " cmd=get " in line and " watch=0 " not in line] == []


def test_a_blocking_command_finds_a_moved_slot_soon(
    small_cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(small_cluster.url, shards=1), eventually)
    owner, other = owner_and_other(small_cluster, "q")
    give_slot(small_cluster, slot_of(owner, "q"), other)
    wire = wires(proxy.listen)
    eventually(lambda: say(wire, "BLPOP q 0.01")[0] == b"*-1\r\n", timeout_s=3)


def test_a_transaction_may_begin_with_a_command_without_keys(
    cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(cluster.url, shards=1), eventually)
    for key in ("a", "b", "c", "d", "e"):
        assert say(wires(proxy.listen), "MULTI", "PING", f"SET {key} 1", "EXEC")[3].startswith(b"*2")


# --- 3. Order and freshness around the local cache.


@pytest.fixture
def hot(own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually) -> Any:
    """A proxy with `hot` in its local cache, and a connection to it."""
    ask(own_server.address, "SET", "hot", "old")
    proxy = ready(proxy_factory(own_server.address, shards=1, rules=[HOT_RULE]), eventually)
    wire = wires(proxy.listen)
    heat(proxy, wire, "hot")
    return wire


def test_a_read_that_waits_for_a_fill_is_not_overtaken_by_the_next_write(
    hot: Wire, own_server: EmbeddedServer
) -> None:
    for i in range(20):
        say(hot, *["GET hot"] * 20)
        ask(own_server.address, "SET", "hot", f"old{i:02}")
        time.sleep(0.005)
        assert say(hot, "GET hot", f"SET hot new{i:02}")[0] == b"$5\r\nold%02d\r\n" % i


def test_a_write_without_named_keys_is_seen_by_the_read_behind_it(hot: Wire) -> None:
    for i in range(20):
        say(hot, *["GET hot"] * 20)
        time.sleep(0.005)
        script = command("EVAL", f"return redis.call('set','hot','new{i:02}')", "0")
        assert say(hot, script, "GET hot")[1] == b"$5\r\nnew%02d\r\n" % i


@pytest.mark.parametrize(
    "inside", [words("FLUSHALL"), command("EVAL", "return redis.call('set','hot','new')", "0")]
)
def test_a_transaction_that_writes_without_naming_keys_is_seen_at_once(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually, inside: Command
) -> None:
    relay = Relay(own_server.address)
    try:
        ask(own_server.address, "SET", "hot", "old")
        proxy = ready(proxy_factory(relay.address, shards=1, rules=[HOT_RULE]), eventually)
        wire = wires(proxy.listen)
        heat(proxy, wire, "hot")
        relay.freeze_tracking()
        say(wire, "MULTI", inside, "EXEC")
        got = say(wire, "GET hot")[0]
        relay.thaw()
        assert got == ask(own_server.address, "GET", "hot")
    finally:
        relay.close()


def test_a_cached_missing_key_of_a_migrating_slot_is_not_served_past_the_bound(
    small_cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(small_cluster.url, shards=1, rules=[HOT_RULE]), eventually)
    wire = wires(proxy.listen)
    owner, other = owner_and_other(small_cluster, "{t}there")
    say(wire, "SET {t}there 1")
    heat(proxy, wire, "{t}there", "{t}missing")
    slot = str(slot_of(owner, "{t}there"))
    ask(other, "CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(owner))
    ask(owner, "CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(other))
    say(wires(other), "ASKING", "SET {t}missing written")
    time.sleep(0.3)
    assert say(wire, "GET {t}there", "GET {t}missing")[1] == b"$7\r\nwritten\r\n"


# --- 4. Nothing hangs, nothing leaks, memory is bounded.


class LastWords:
    """A relay that ends a connection in the same segment as the reply to a request with `LASTWORD`."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where to connect."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                down, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(down,), daemon=True).start()

    def _carry(self, down: socket.socket) -> None:
        # One request at a time is all that is asked of it.
        with down, socket.create_connection(self._upstream) as up, contextlib.suppress(OSError):
            while data := down.recv(65536):
                if b"LASTWORD" in data:
                    down.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                    down.sendall(b"+QUEUED\r\n" if b"MULTI" not in data else b"+OK\r\n+QUEUED\r\n")
                    return
                up.sendall(data)
                time.sleep(0.02)
                down.sendall(up.recv(65536))


def test_the_end_of_an_upstream_connection_is_seen_behind_its_last_reply(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    relay = LastWords(own_server.address)
    try:
        proxy = ready(proxy_factory(relay.address, shards=1, local_cache=False), eventually)
        wire = wires(proxy.listen, 3.0)
        wire.send([words("MULTI"), words("SET LASTWORD 1"), words("EXEC")])
        assert [wire.reply(), wire.reply()] == [b"+OK\r\n", b"+QUEUED\r\n"]
        with contextlib.suppress(EOFError, ConnectionError):
            assert b"keyheat" in wire.reply()
    finally:
        relay.close()


def test_a_runaway_script_can_be_killed_through_the_proxy(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1), eventually)
    ask(own_server.address, "CONFIG", "SET", "busy-reply-threshold", "100")
    runaway = wires(proxy.listen)
    runaway.send([command("EVAL", "while true do end", "0")])
    time.sleep(0.3)
    try:
        assert ask(proxy.listen, "SCRIPT", "KILL") == b"+OK\r\n"
    finally:
        ask(own_server.address, "SCRIPT", "KILL")


def test_a_client_that_loses_its_subscriptions_loses_its_other_connection_too(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1), eventually)
    wire = wires(proxy.listen)
    say(wire, "HELLO 3")
    say(wire, "SUBSCRIBE c")
    wire.send([words("BLPOP never 0")])

    def blocked() -> bool:
        return b"blocked_clients:1" in ask(own_server.address, "INFO", "clients")

    eventually(blocked)
    ask(own_server.address, "CLIENT", "KILL", "TYPE", "pubsub")
    eventually(lambda: not blocked(), timeout_s=2)


def test_hello_2_turns_the_messages_of_a_subscription_too(proxy: Any, valkey: str, wires: Any) -> None:
    publisher = wires(valkey)
    for _ in range(30):
        wire = wires(proxy.listen)
        say(wire, "HELLO 3")
        say(wire, "SUBSCRIBE c")
        if say(wire, "HELLO 2")[0].startswith(b"-"):
            return
        say(publisher, "PUBLISH c hi")
        assert wire.reply().startswith(b"*3")


def resident_mib() -> int:
    """What this process holds in memory, the proxy within it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def test_requests_held_for_a_server_that_hangs_are_bounded(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, buffers_max_bytes=16 << 20), eventually)
    wire = wires(proxy.listen, 1.0)
    big = [command("SET", "k", b"x" * (1 << 20))]
    before = resident_mib()
    own_server.pause()
    try:
        with contextlib.suppress(OSError):
            for _ in range(150):
                wire.send(big)
        assert resident_mib() - before < 80
    finally:
        own_server.resume()


def test_replies_held_for_their_turn_are_bounded(
    small_cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(small_cluster.url, shards=1, buffers_max_bytes=16 << 20), eventually)
    slow, _ = owner_and_other(small_cluster, "k0")
    other = next(f"k{i}" for i in range(99) if owner_and_other(small_cluster, f"k{i}")[0] != slow)
    wire = wires(proxy.listen)
    say(wire, command("SET", other, b"x" * (1 << 20)))
    before = resident_mib()
    ask(slow, "CLIENT", "PAUSE", "2000", "ALL")
    wire.send([words("GET k0"), *[words(f"GET {other}")] * 150])
    time.sleep(1.5)
    assert resident_mib() - before < 80


@pytest.mark.parametrize(
    "talk",
    [
        ["MULTI", "EXEC x", "SET word 1", "EXEC", "GET word", "DEL word"],
        ["MULTI", "SET word 1", "EXEC x", "SET word 2", "DISCARD", "GET word", "DEL word"],
        ["MULTI", "SET word 1", "DISCARD x", "SET word 2", "EXEC", "GET word"],
        ["WATCH word", "MULTI", "EXEC x", "EXEC", "MULTI", "GET word", "EXEC"],
        ["EXEC x", "DISCARD x", "MULTI x", "PING", "MULTI", "PING", "EXEC"],
        ["MULTI", "MULTI x", "SET word 1", "EXEC", "GET word"],
    ],
)
@pytest.mark.parametrize("where", ["one server", "a cluster"])
def test_exec_and_discard_with_arguments_leave_a_client_where_the_server_does(
    request: Any, proxy_factory: Any, wires: Any, eventually: Eventually, talk: list[str], where: str
) -> None:
    if where == "one server":
        upstream = direct = request.getfixturevalue("valkey")
    else:
        cluster = request.getfixturevalue("cluster")
        upstream, direct = cluster.url, cluster.owner("word").address
    proxy = ready(proxy_factory(upstream, shards=1), eventually)
    assert say(wires(proxy.listen), *talk) == say(wires(direct), *talk)


@pytest.mark.parametrize("own", [(), ("HELLO 3", "CLIENT TRACKING ON")])
def test_exec_with_arguments_ends_a_watch(
    valkey: str, proxy_factory: Any, wires: Any, eventually: Eventually, own: tuple[str, ...]
) -> None:
    proxy = ready(proxy_factory(valkey, shards=1), eventually)
    for address in (valkey, proxy.listen):
        wire = wires(address)
        say(wire, *own)
        assert say(wire, "WATCH word", "EXEC x")[1].startswith(b"-EXECABORT ")
        ask(valkey, "SET", "word", "other")
        assert say(wire, "MULTI", "SET word 1", "EXEC")[2] == b"*1\r\n+OK\r\n"
        assert say(wire, "WATCH word", "MULTI", "SET word 2", "EXEC x")[3].startswith(b"-EXECABORT ")
        ask(valkey, "SET", "word", "other")
        assert say(wire, "MULTI", "SET word 3", "EXEC")[2] == b"*1\r\n+OK\r\n"


@pytest.mark.parametrize(
    ("line", "name", "why"),
    [
        ("HELLO 3", "hello", "connection to the proxy"),
        ("AUTH x", "auth", "connection to the proxy"),
        ("WAIT 0 0", "wait", "other writes went on others"),
        ("CLIENT ID", "client id", "clients of the proxy"),
        ("CLIENT SETNAME x", "client setname", "clients of the proxy"),
        ("SUBSCRIBE c", "subscribe", "a connection of its own"),
        ("MONITOR", "monitor", "a connection of its own"),
        ("SCRIPT KILL", "script kill", "may be busy"),
        ("DBSIZE", "dbsize", "all nodes of the Cluster"),
        ("SCAN 0", "scan", "all nodes of the Cluster"),
        ("SELECT 0", "select", "one database"),
        ("CLUSTER INFO", "cluster info", "in place of the nodes"),
    ],
)
def test_what_cannot_be_part_of_a_transaction_is_named_and_why(
    cluster: EmbeddedCluster,
    proxy_factory: Any,
    wires: Any,
    eventually: Eventually,
    line: str,
    name: str,
    why: str,
) -> None:
    wire = wires(ready(proxy_factory(cluster.url, shards=1), eventually).listen)
    replies = say(wire, "MULTI", line, "SET word 1", "EXEC", "GET word")
    said = replies[1].decode()
    assert said.startswith(f"-ERR keyheat: '{name}' cannot be part of a transaction: ")
    assert why in said
    assert replies[3:] == [b"-EXECABORT Transaction discarded because of previous errors.\r\n", b"$-1\r\n"]


def test_what_is_about_a_cluster_is_left_to_one_server_in_a_transaction_too(
    valkey: str, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(valkey, shards=1), eventually)
    talk = ["MULTI", "READONLY", "CLUSTER INFO", "EXEC", "PING"]
    assert say(wires(proxy.listen), *talk) == say(wires(valkey), *talk)
