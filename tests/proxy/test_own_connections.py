"""What needs more than a shared connection: tracking, waits, monitors, shard channels, lists of clients."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import HOT_RULE, heat, ready
from tests.proxy.test_sessions import give_slot, owner_and_other, slot_of
from tests.proxy.wire import Wire, ask, command, say

Eventually = Callable[..., Any]


@pytest.fixture(params=["standalone", "cluster"])
def upstream(request: pytest.FixtureRequest) -> str:
    """A server, and a Cluster."""
    if request.param == "standalone":
        return str(request.getfixturevalue("valkey"))
    cluster: EmbeddedCluster = request.getfixturevalue("cluster")
    return cluster.url


@pytest.fixture
def proxy(upstream: str, proxy_factory: Any, eventually: Eventually) -> Any:
    """A proxy of two shards, in which everything is hot at once."""
    return ready(proxy_factory(upstream, shards=2, rules=[HOT_RULE]), eventually)


@pytest.fixture
def before_cluster(cluster: EmbeddedCluster, proxy_factory: Any, eventually: Eventually) -> Any:
    """A proxy before a Cluster."""
    return ready(proxy_factory(cluster.url, shards=2), eventually)


# --- 1. Replies that are not wanted.


def test_replies_are_left_out_as_the_client_says(proxy: Any, wires: Any) -> None:
    wire = wires(proxy.listen)
    lines = ["CLIENT REPLY SKIP", "SET a 1", "GET a", "CLIENT REPLY OFF", "SET b 2", "NOSUCH", "PING"]
    wire.send([command(*line.split()) for line in [*lines, "CLIENT REPLY ON", "MGET a b"]])
    assert [wire.reply() for _ in range(3)] == [b"$1\r\n1\r\n", b"+OK\r\n", b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n"]


# --- 2. Tracking of the client's own.


def test_a_tracking_client_hears_of_writes_and_is_never_answered_from_memory(proxy: Any, wires: Any) -> None:
    wire, other = wires(proxy.listen), wires(proxy.listen)
    keys = [f"k{i}" for i in range(6)]
    for key in keys:
        say(other, f"SET {key} old")
    heat(proxy, other, *keys)
    say(wire, "HELLO 3")
    assert say(wire, "CLIENT TRACKING ON") == [b"+OK\r\n"]
    assert b"on" in say(wire, "CLIENT TRACKINGINFO")[0]
    for key in keys:
        assert say(wire, f"GET {key}") == [b"$3\r\nold\r\n"]
        say(other, f"SET {key} new")
        assert wire.reply() == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$2\r\n%s\r\n" % key.encode()
        assert say(wire, f"GET {key}") == [b"$3\r\nnew\r\n"]
    assert say(wire, "CLIENT TRACKING OFF") == [b"+OK\r\n"]
    say(other, "SET k0 newer")
    assert say(wire, "GET k0") == [b"$5\r\nnewer\r\n"]
    assert b"off" in say(wire, "CLIENT TRACKINGINFO")[0]


def test_broadcasts_come_from_every_primary(proxy: Any, wires: Any) -> None:
    wire, other = wires(proxy.listen), wires(proxy.listen)
    say(wire, "HELLO 3", "CLIENT TRACKING ON BCAST PREFIX b:")
    # The connections to the other primaries say the same before anything else of the client.
    say(wire, *[f"GET b:{i}" for i in range(20)])
    for i in range(20):
        say(other, f"SET b:{i} 1", f"SET c:{i} 1")
        assert b"invalidate" in wire.reply()


def test_optin_caching_concerns_the_next_command_only(proxy: Any, wires: Any) -> None:
    wire, other = wires(proxy.listen), wires(proxy.listen)
    say(wire, "HELLO 3", "CLIENT TRACKING ON OPTIN")
    assert say(wire, "CLIENT CACHING YES", "GET a", "GET b")[0] == b"+OK\r\n"
    say(other, "SET b 1", "SET a 1")
    assert b"$1\r\na" in wire.reply()
    assert say(wire, "CLIENT CACHING NO")[0].startswith(b"-")
    assert say(other, "CLIENT CACHING YES")[0].startswith(b"-ERR CLIENT CACHING can be called only")


def test_caching_may_be_asked_for_inside_a_transaction(proxy: Any, wires: Any) -> None:
    # redis-rs asks so in an atomic pipeline.
    wire, other = wires(proxy.listen), wires(proxy.listen)
    say(other, "SET {t}a 1", "SET {t}b 2")
    say(wire, "HELLO 3", "CLIENT TRACKING ON OPTIN")
    replies = say(wire, "MULTI", "CLIENT CACHING YES", "MGET {t}a {t}b", "EXEC", "GET {t}c")
    assert replies[1:4] == [
        b"+QUEUED\r\n",
        b"+QUEUED\r\n",
        b"*2\r\n+OK\r\n*2\r\n$1\r\n1\r\n$1\r\n2\r\n",
    ]
    say(other, "SET {t}c 1", "SET {t}b 1")
    assert b"{t}b" in wire.reply()
    # Who does not track hears of it when the transaction runs.
    replies = say(other, "MULTI", "CLIENT CACHING YES", "GET {t}a", "EXEC", "GET {t}a")
    assert replies[3].startswith(b"*2\r\n-ERR CLIENT CACHING can be called only")
    assert replies[4] == b"$1\r\n1\r\n"


def test_transactions_and_waits_of_a_tracking_client_work(proxy: Any, wires: Any) -> None:
    wire, other = wires(proxy.listen), wires(proxy.listen)
    say(wire, "HELLO 3", "CLIENT TRACKING ON")
    assert say(wire, "MULTI", "SET {t}a 1", "GET {t}a", "EXEC")[3] == b"*2\r\n+OK\r\n$1\r\n1\r\n"
    assert say(wire, "BLPOP {t}none 0.01") == [b"_\r\n"]
    say(other, "SET {t}a 2")
    assert b"invalidate" in wire.reply()
    say(wire, "WATCH {t}a")
    say(other, "SET {t}a 3")
    replies = say(wire, "MULTI", "SET {t}a lost", "EXEC")
    assert b"_\r\n" in replies
    assert say(wire, "WATCH {t}a", "MULTI", "DISCARD", "GET {t}a")[3] == b"$1\r\n3\r\n"


def test_a_refused_tracking_leaves_no_trace(proxy: Any, wires: Any) -> None:
    wire = wires(proxy.listen)
    assert say(wire, "CLIENT TRACKING ON OPTIN OPTOUT")[0].startswith(b"-ERR")
    assert say(wire, "CLIENT TRACKING ON REDIRECT 1")[0].startswith(b"-ERR keyheat: REDIRECT")
    assert say(wire, "SET a 1", "GET a")[1] == b"$1\r\n1\r\n"
    assert b"off" in say(wire, "CLIENT TRACKINGINFO")[0]


def test_no_touch_ends_with_its_off(proxy: Any, wires: Any) -> None:
    wire = wires(proxy.listen)
    assert say(wire, "CLIENT NO-TOUCH ON", "SET a 1", "GET a")[2] == b"$1\r\n1\r\n"
    assert b" flags=T " in say(wire, "CLIENT INFO")[0]
    assert say(wire, "CLIENT NO-TOUCH OFF", "GET a")[1] == b"$1\r\n1\r\n"
    assert b" flags=N " in say(wire, "CLIENT INFO")[0]


# --- 3. Waiting for replicas.


@contextlib.contextmanager
def replica_of(server: EmbeddedServer, binary: str) -> Iterator[EmbeddedServer]:
    """A replica that is in step."""
    host, port = server.address.rsplit(":", 1)
    with EmbeddedServer(binary=binary) as replica:
        ask(replica.address, "REPLICAOF", host, port)
        deadline = time.monotonic() + 20
        while b"state=online" not in ask(server.address, "INFO", "replication"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield replica


@pytest.mark.parametrize("program", ["valkey", "/usr/bin/redis-server"])
def test_wait_counts_replicas_that_have_the_clients_writes(
    program: str, server_binary: str, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    binary = server_binary if program == "valkey" else shutil.which(program)
    if binary is None:
        pytest.skip("no other server is installed")
    with EmbeddedServer(binary=binary) as server, replica_of(server, binary) as replica:
        proxy = ready(proxy_factory(server.address, shards=1), eventually)
        wire, other = wires(proxy.listen, 10.0), wires(proxy.listen)
        assert say(wire, "SET a 1", "WAIT 1 2000")[1] == b":1\r\n"
        replica.pause()
        try:
            # A wait that asked on a connection without writes would count the replica at once.
            assert say(wire, "SET a 2", "WAIT 1 200")[1] == b":0\r\n"
            assert say(wire, "WAIT 0 0") == [b":0\r\n"]
            # Nobody else is held up by a wait.
            wire.send([command("WAIT", "1", "0"), command("GET", "a")])
            assert say(other, "SET b 1", "GET b")[1] == b"$1\r\n1\r\n"
        finally:
            replica.resume()
        assert [wire.reply(), wire.reply()] == [b":1\r\n", b"$1\r\n2\r\n"]
        assert say(wire, "MULTI", "SET a 3", "EXEC", "WAIT 1 2000")[3] == b":1\r\n"


def test_waitaof_answers_as_the_server_does(
    server_binary: str, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    config = {"appendonly": "yes", "appendfsync": "always"}
    with EmbeddedServer(config, binary=server_binary) as server:
        proxy = ready(proxy_factory(server.address, shards=1), eventually)
        wire = wires(proxy.listen)
        assert say(wire, "SET a 1", "WAITAOF 1 0 2000")[1] == b"*2\r\n:1\r\n:0\r\n"
        assert say(wire, "WAITAOF 1 1 100")[0] == b"*2\r\n:1\r\n:0\r\n"
        assert say(wire, "WAITAOF x 1 100")[0].startswith(b"-ERR")
        assert ask(server.address, "FUNCTION", "LIST") == b"*0\r\n"


def test_a_wait_after_a_lost_connection_is_an_error_once(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1), eventually)
    wire = wires(proxy.listen)
    say(wire, "SET a 1")
    ask(own_server.address, "CLIENT", "KILL", "TYPE", "normal")
    eventually(lambda: not say(wire, "GET a")[0].startswith(b"-"))
    assert say(wire, "WAIT 0 100")[0].startswith(b"-ERR keyheat: a connection upstream was lost")
    assert say(wire, "SET a 1", "WAIT 0 100")[1] == b":0\r\n"


def test_wait_before_a_cluster_counts_the_node_with_the_fewest(
    own_cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_cluster.url, shards=1), eventually)
    wire = wires(proxy.listen, 10.0)
    say(wire, *[f"SET k{i} 1" for i in range(20)])
    eventually(lambda: say(wire, "WAIT 1 1000")[0] == b":1\r\n")
    assert say(wire, "WAIT 2 50")[0] == b":1\r\n"


def test_a_client_that_leaves_in_a_wait_leaves_no_connection(
    own_server: EmbeddedServer, proxy_factory: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1), eventually)
    with contextlib.closing(Wire(proxy.listen)) as wire:
        wire.send([command("SET", "a", "1"), command("WAIT", "1", "0")])
        wire.reply()
        eventually(lambda: b"blocked_clients:1" in ask(own_server.address, "INFO", "clients"))
    eventually(lambda: b"blocked_clients:0" in ask(own_server.address, "INFO", "clients"))


# --- 4. MONITOR.


def test_monitor_shows_what_every_primary_serves(proxy: Any, wires: Any) -> None:
    wire, other = wires(proxy.listen), wires(proxy.listen)
    assert say(wire, "MONITOR") == [b"+OK\r\n"]
    for i in range(6):
        say(other, f"SET seen:{i} 1")
        while b"seen:%d" % i not in (line := wire.reply()):
            assert line.startswith(b"+")
    assert say(wire, "RESET")[0].startswith(b"+")


def test_a_monitor_that_reads_nothing_is_cut(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, buffers_max_bytes=4 << 20), eventually)
    wire, other = wires(proxy.listen), wires(own_server.address)
    say(wire, "MONITOR")
    big = command("SET", "k", b"x" * (1 << 20))
    for _ in range(40):
        say(other, big)
    with pytest.raises((EOFError, ConnectionError)):
        [wire.reply() for _ in range(100)]


# --- 5. Shard channels before a Cluster.


def test_shard_channels_of_all_nodes_are_heard(before_cluster: Any, cluster: EmbeddedCluster) -> None:
    host, port = before_cluster.listen.rsplit(":", 1)
    channels = [f"c{i}" for i in range(12)]
    with redis.Redis(host=host, port=int(port), protocol=3) as client:
        heard = client.pubsub()
        for channel in channels:
            heard.ssubscribe(channel)
        counts = [next_message(heard)["data"] for _ in channels]
        assert counts == list(range(1, 13))
        for channel in channels:
            assert client.spublish(channel, "hi") == 1
        assert {next_message(heard)["channel"].decode() for _ in channels} == set(channels)
        heard.sunsubscribe(*channels[:1])
        assert next_message(heard)["data"] == 11
        heard.sunsubscribe()
        assert [next_message(heard)["data"] for _ in range(11)][-1] == 0
        assert client.get("x") is None
    total = [ask(node.address, "PUBSUB", "SHARDCHANNELS") for node in cluster.primaries]
    assert total == [b"*0\r\n"] * 3


def next_message(heard: Any) -> Any:
    """The next message, whatever it is."""
    deadline = time.monotonic() + 10
    while (message := heard.get_message(timeout=1)) is None:
        assert time.monotonic() < deadline
    return message


def test_a_shard_channel_follows_its_slot(
    proxy_factory: Any, server_binary: str, wires: Any, eventually: Eventually
) -> None:
    with EmbeddedCluster(3, binary=server_binary) as cluster:
        proxy = ready(proxy_factory(cluster.url, shards=1), eventually)
        wire = wires(proxy.listen)
        say(wire, "HELLO 3")
        assert say(wire, "SSUBSCRIBE c") == [b">3\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n:1\r\n"]
        owner, other = owner_and_other(cluster, "c")
        give_slot(cluster, slot_of(owner, "c"), other)
        eventually(lambda: ask(other, "SPUBLISH", "c", "hi") == b":1\r\n")
        assert wire.reply() == b">3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n"
        assert say(wire, "SUNSUBSCRIBE c") == [b">3\r\n$12\r\nsunsubscribe\r\n$1\r\nc\r\n:0\r\n"]


def test_channels_of_both_kinds_do_not_end_each_other(valkey: str, proxy_factory: Any, wires: Any) -> None:
    wire = wires(proxy_factory(valkey, shards=1).listen)
    say(wire, "SUBSCRIBE a")
    say(wire, "SSUBSCRIBE b")
    say(wire, "SUNSUBSCRIBE b")
    ask(valkey, "PUBLISH", "a", "hi")
    assert b"hi" in wire.reply()


def test_what_is_subscribed_to_is_counted_over_all_nodes(before_cluster: Any, wires: Any) -> None:
    some = [wires(before_cluster.listen) for _ in range(4)]
    for wire in some:
        say(wire, "SUBSCRIBE both")
    asker = wires(before_cluster.listen)
    assert say(asker, "PUBSUB CHANNELS", "PUBSUB NUMSUB both none", "PUBSUB NUMPAT") == [
        b"*1\r\n$4\r\nboth\r\n",
        b"*4\r\n$4\r\nboth\r\n:4\r\n$4\r\nnone\r\n:0\r\n",
        b":0\r\n",
    ]


def test_keyspace_notifications_of_all_nodes_are_heard(
    before_cluster: Any, cluster: EmbeddedCluster, wires: Any
) -> None:
    for node in cluster.primaries:
        ask(node.address, "CONFIG", "SET", "notify-keyspace-events", "KEA")
    wire, other = wires(before_cluster.listen), wires(before_cluster.listen)
    say(wire, "HELLO 3")
    say(wire, "PSUBSCRIBE __keyspace@0__:told:*")
    for i in range(12):
        # The other primaries confirm nothing: until they have heard of it, it is said again.
        deadline = time.monotonic() + 5
        wire.socket.settimeout(0.05)
        while True:
            say(other, f"SET told:{i} 1")
            with contextlib.suppress(TimeoutError):
                assert b"told:%d\r\n" % i in wire.reply()
                break
            assert time.monotonic() < deadline
    wire.socket.settimeout(5)
    say(wire, "PSUBSCRIBE news*")
    time.sleep(0.2)
    while say(other, "PUBLISH newsflash hi") != [b":0\r\n"] and b"newsflash" not in wire.reply():
        pass
    say(wire, "RESET")
    for node in cluster.primaries:
        ask(node.address, "CONFIG", "SET", "notify-keyspace-events", "")


# --- 6. Clients of a Cluster.


def test_a_client_of_a_cluster_meets_one_node(before_cluster: Any, wires: Any) -> None:
    host, port = before_cluster.listen.rsplit(":", 1)
    with redis.RedisCluster(host=host, port=int(port)) as client:
        assert [node.name for node in client.get_nodes()] == [before_cluster.listen]
        for i in range(50):
            assert client.set(f"k{i}", i)
            assert client.get(f"k{i}") == str(i).encode()
        assert client.mget_nonatomic([f"k{i}" for i in range(50)])[7] == b"7"
        assert client.cluster_keyslot("a") == 15495
        assert client.cluster_countkeysinslot(client.keyslot("k1")) == 1
        assert client.cluster_info()["cluster_state"] == "ok"
        assert client.info()["cluster_enabled"] == 1
    wire = wires(before_cluster.listen)
    assert say(wire, "READONLY", "ASKING", "READWRITE") == [b"+OK\r\n"] * 3
    assert b"keyheat" in say(wire, "CLUSTER RESET")[0]
    assert say(wire, "HELLO 3", "CLUSTER MYID")[1] == say(wires(before_cluster.listen), "CLUSTER MYID")[0]


def test_an_address_can_be_announced(
    cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(cluster.url, announce="cache.example:7000"), eventually)
    assert b"cache.example:7000@" in say(wires(proxy.listen), "CLUSTER NODES")[0]


def test_before_one_server_its_own_answer_comes(valkey: str, proxy_factory: Any, wires: Any) -> None:
    wire, direct = wires(proxy_factory(valkey).listen), wires(valkey)
    for line in ("CLUSTER SLOTS", "CLUSTER", "CLUSTER NOSUCH", "READONLY", "ASKING", "CLUSTER INFO"):
        assert say(wire, line) == say(direct, line)


# --- 7. Questions about clients.


def test_clients_of_all_shards_are_listed_and_killed(proxy: Any, wires: Any) -> None:
    some = [wires(proxy.listen) for _ in range(4)]
    ids = [int(say(wire, f"CLIENT SETNAME n{i}", "CLIENT ID")[1][1:]) for i, wire in enumerate(some)]
    assert len(set(ids)) == 4
    listed = say(some[0], "CLIENT LIST")[0].decode()
    assert all(f"id={number} " in listed and f" name=n{i} " in listed for i, number in enumerate(ids))
    assert f"laddr={proxy.listen} " in listed
    only = say(some[0], f"CLIENT LIST ID {ids[2]} {ids[3]}")[0].decode()
    assert only.count("id=") == 2
    assert say(some[0], f"CLIENT KILL ID {ids[2]}") == [b":1\r\n"]
    with pytest.raises((EOFError, ConnectionError)):
        say(some[2], "PING")
    assert say(some[0], "CLIENT KILL ID 999999") == [b":0\r\n"]
    assert say(some[0], "CLIENT KILL 1.2.3.4:5") == [b"-ERR No such client\r\n"]
    assert say(some[0], f"CLIENT KILL ID {ids[0]} SKIPME no") == [b":1\r\n"]
    with pytest.raises((EOFError, ConnectionError)):
        some[0].reply()


def test_client_info_has_the_servers_fields(proxy: Any, wires: Any, own_server: EmbeddedServer) -> None:
    def fields(address: str) -> list[bytes]:
        line = say(wires(address), "CLIENT INFO")[0]
        return [word.partition(b"=")[0] for word in line.split(b"\r\n", 1)[1].split()]

    assert set(fields(own_server.address)) - set(fields(proxy.listen)) <= {b"capa"}


def test_a_blocked_client_is_unblocked_over_shards(proxy: Any, wires: Any, eventually: Eventually) -> None:
    some = [wires(proxy.listen) for _ in range(4)]
    for wire in some[1:]:
        number = say(wire, "CLIENT ID")[0].decode()[1:].strip()
        wire.send([command("BLPOP", "never", "0")])
        eventually(lambda n=number: say(some[0], f"CLIENT UNBLOCK {n}")[0] == b":1\r\n")
        assert wire.reply() == b"*-1\r\n"
    assert say(some[0], "CLIENT UNBLOCK 1 NOSUCH")[0].startswith(b"-ERR CLIENT UNBLOCK reason")


def test_pause_and_unpause_reach_every_primary(proxy: Any, wires: Any) -> None:
    wire, other = wires(proxy.listen), wires(proxy.listen)
    assert say(wire, "CLIENT PAUSE 10000 WRITE") == [b"+OK\r\n"]
    other.send([command("SET", "a", "1")])
    other.socket.settimeout(0.1)
    with pytest.raises(TimeoutError):
        other.reply()
    assert say(wire, "CLIENT UNPAUSE") == [b"+OK\r\n"]
    other.socket.settimeout(5)
    assert other.reply() == b"+OK\r\n"


# --- 8. What changes a session while it lasts.


def test_the_protocol_changes_while_keys_are_watched(proxy: Any, wires: Any) -> None:
    wire = wires(proxy.listen)
    say(wire, "HSET h a 1", "WATCH h")
    assert say(wire, "HELLO 3")[0].startswith(b"%7")
    assert say(wire, "MULTI", "HGETALL h", "EXEC")[2].startswith(b"*1\r\n%1\r\n")
    say(wire, "SUBSCRIBE c")
    assert say(wire, "HELLO 2")[0].startswith(b"*14")
    say(wires(proxy.listen), "PUBLISH c hi")
    assert wire.reply().startswith(b"*3")


def test_select_after_watch_is_the_servers(
    valkey: str, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = proxy_factory(valkey, shards=1)
    wire, direct = wires(proxy.listen), wires(valkey)
    ready(proxy, eventually)
    lines = ["SET k 0", "WATCH k", "SELECT 1", "SET k 1", "SELECT 99", "MULTI", "GET k", "EXEC", "GET k"]
    assert say(wire, *lines) == say(direct, *lines)
    say(wire, "SELECT 0", "WATCH k", "SELECT 1")
    say(direct, "SELECT 0", "SET k changed")
    assert say(wire, "MULTI", "SET k lost", "EXEC")[2] == b"*-1\r\n"


def test_debug_is_answered_by_the_server(own_server: EmbeddedServer, proxy_factory: Any, wires: Any) -> None:
    proxy = proxy_factory(own_server.address, shards=1)
    wire, direct = wires(proxy.listen), wires(own_server.address)
    for line in ("DEBUG OBJECT nosuch", "DEBUG NOSUCH", "DEBUG"):
        assert say(wire, line) == say(direct, line)
    assert b"debugger" in say(wire, "SCRIPT DEBUG YES")[0]
