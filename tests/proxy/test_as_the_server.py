"""What suites of other clients found: where the proxy answered otherwise than the server behind it."""

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import heat, ready, stats
from tests.proxy.wire import Command, Wire, ask, command, encode, say, words

Eventually = Callable[..., Any]


@pytest.fixture
def proxy(valkey: str, proxy_factory: Any, eventually: Eventually) -> Any:
    """A proxy before the shared server."""
    return ready(proxy_factory(valkey), eventually)


def until(wire: Wire, batch: list[Command], end: bytes = b"$-1\r\n") -> bytes:
    """What is answered up to `end`, in which the reader of `Wire` would nest too deep."""
    wire.send(batch)
    found = b""
    while not found.endswith(end):
        more = wire.socket.recv(1 << 16)
        assert more, found[-200:]
        found += more
    return found


@pytest.mark.parametrize("inner", ["MULTI", "WATCH nested:key", "WATCH"])
def test_what_may_not_be_in_a_transaction_spoils_it_where_the_server_says_so(
    proxy: Any, valkey: str, wires: Any, inner: str
) -> None:
    talk = ["MULTI", inner, "SET nested:key 1", "EXEC", "GET nested:key", "DEL nested:key"]
    assert say(wires(proxy.listen), *talk) == say(wires(valkey), *talk)


def test_a_nested_multi_before_the_first_key_is_told_to_the_node_of_that_key(
    cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(cluster.url), eventually)
    node = cluster.owner("nested:key").address
    talk = ["MULTI", "MULTI", "SET nested:key 1", "EXEC", "GET nested:key", "DEL nested:key"]
    through, direct = say(wires(proxy.listen), *talk), say(wires(node), *talk)
    assert through[1].startswith(b"-")
    assert [*through[:1], *through[2:]] == [*direct[:1], *direct[2:]]


@pytest.mark.parametrize("wrong", ["GET", "HPERSIST nested:key FIELDS 1", "NOSUCH nested:key"])
def test_in_a_transaction_before_a_cluster_the_server_says_what_is_wrong_with_a_command(
    cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually, wrong: str
) -> None:
    proxy = ready(proxy_factory(cluster.url), eventually)
    talk = ["MULTI", wrong, "EXEC"]
    assert say(wires(proxy.listen), *talk) == say(wires(cluster.owner("nested:key").address), *talk)


def test_what_a_client_publishes_to_itself_comes_after_the_reply(proxy: Any, wires: Any) -> None:
    wire = wires(proxy.listen)
    say(wire, "HELLO 3", "SUBSCRIBE to:self")
    for _ in range(50):
        replies = say(wire, "MULTI", "PING abc", "PUBLISH to:self bar", "PING def", "EXEC")
        assert replies[-1] == b"*3\r\n$3\r\nabc\r\n:1\r\n$3\r\ndef\r\n"
        assert wire.reply().startswith(b">3\r\n$7\r\nmessage")


def test_a_client_that_waits_in_a_blocking_command_hears_what_is_published_at_once(
    proxy: Any, valkey: str, wires: Any
) -> None:
    wire = wires(proxy.listen)
    say(wire, "HELLO 3", "SUBSCRIBE to:waiting")
    wire.send([words("BLPOP nothing:here 3")])
    time.sleep(0.1)  # until it waits at the server
    ask(valkey, "PUBLISH", "to:waiting", "hi")
    assert wire.reply().startswith(b">3\r\n$7\r\nmessage")


def test_a_reply_that_nests_as_deep_as_lua_lets_it_costs_nobody_a_connection(
    proxy: Any, valkey: str, wires: Any
) -> None:
    script = command("EVAL", "local a = {}; local b = {a}; a[1] = b; return a", "0")
    direct, through = (until(wires(address), [script, words("GET x")]) for address in (valkey, proxy.listen))
    assert direct.count(b"*1\r\n") > 1000
    assert through == direct


def test_a_number_that_is_none_costs_nobody_a_connection(proxy: Any, valkey: str, wires: Any) -> None:
    script = command("EVAL", "server.setresp(3); return {big_number='123\\r\\n 123'}", "0")
    talk: list[str | Command] = ["HELLO 3", script, "GET none"]
    assert (
        say(wires(proxy.listen), *talk)[1:] == say(wires(valkey), *talk)[1:] == [b"(123   123\r\n", b"_\r\n"]
    )


def test_a_script_that_runs_longer_than_a_server_may_be_silent_is_answered(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    ask(own_server.address, "CONFIG", "SET", "busy-reply-threshold", "100")
    proxy = ready(proxy_factory(own_server.address, shards=1, breaker_silence_ms=200), eventually)
    wire = wires(proxy.listen, 15.0)
    clock = "local from = os.clock(); while os.clock() - from < 2.5 do end; return 7"
    assert say(wire, command("EVAL", clock, "0")) == [b":7\r\n"]
    eventually(lambda: say(wire, "GET none") == [b"$-1\r\n"])


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_ping_shows_in_monitor_and_the_proxys_own_greeting_does_not(
    proxy: Any, wires: Any, protocol: int
) -> None:
    ear, wire = wires(proxy.listen), wires(proxy.listen)
    say(ear, "MONITOR")
    say(wire, f"HELLO {protocol}")
    say(wire, "PING seen", "MULTI", "SET seen 1", "EXEC")  # MULTI has a new connection opened
    lines = [ear.reply() for _ in range(4)]
    assert [line.split(b"] ")[1].strip() for line in lines] == [
        b'"PING" "seen"',
        b'"MULTI"',
        b'"SET" "seen" "1"',
        b'"EXEC"',
    ]


def test_what_the_proxy_asks_for_itself_does_not_show_in_monitor(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1), eventually)
    ear, wire = wires(proxy.listen), wires(proxy.listen)
    say(ear, "MONITOR")
    say(wire, "SET hot 1")
    for _ in range(2):
        heat(proxy, wire, "hot")
        for line in ask(own_server.address, "CLIENT", "LIST").split(b"\n"):
            if b"name=keyheat" in line and b"flags=O" not in line:
                ask(
                    own_server.address,
                    "CLIENT",
                    "KILL",
                    "ID",
                    line.split(b" ")[0].decode().removeprefix("id="),
                )
        eventually(lambda: say(wire, "GET hot") == [b"$1\r\n1\r\n"])
        time.sleep(0.5)  # it looks at the server, ten times a second
    say(wire, "INFO server", "ROLE")  # a client's own
    ask(own_server.address, "ECHO", "end")
    seen: dict[bytes, int] = {}
    while b'"ECHO" "end"' not in (line := ear.reply()):
        said = line.split(b"] ")[1].split(b" ")[0].strip().strip(b'"')
        seen[said] = seen.get(said, 0) + 1
    assert not {b"EXISTS", b"COMMAND"} & set(seen)
    assert (seen[b"INFO"], seen[b"ROLE"]) == (1, 1)


def test_a_pause_of_all_holds_up_a_ping(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address), eventually)
    wire, other = wires(proxy.listen), wires(proxy.listen)
    say(other, "CLIENT PAUSE 300")
    started = time.monotonic()
    assert say(wire, "PING") == [b"+PONG\r\n"]
    assert time.monotonic() - started > 0.25
    say(other, "CLIENT PAUSE 60000 WRITE")
    assert say(wire, "PING") == [b"+PONG\r\n"]


def test_a_pause_holds_up_what_comes_with_it_and_nothing_that_came_before(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address), eventually)
    wire = wires(proxy.listen)
    wire.send([words("SET before 1"), words("CLIENT PAUSE 600"), words("PING")])
    started = time.monotonic()
    assert [wire.reply(), wire.reply()] == [b"+OK\r\n", b"+OK\r\n"]
    assert time.monotonic() - started < 0.5
    assert wire.reply() == b"+PONG\r\n"
    assert time.monotonic() - started > 0.55


def test_a_pause_holds_up_writes_alone_and_is_not_taken_for_a_failing_server(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, breaker_silence_ms=200), eventually)
    writer, script, reader, other = (wires(proxy.listen) for _ in range(4))
    say(other, "CLIENT PAUSE 60000 WRITE")
    writer.send([words("SET paused 1"), words("GET paused")])
    script.send([command("EVAL", "return redis.call('SET', KEYS[1], 1)", "1", "paused:too")])
    time.sleep(0.7)  # longer than a server may be silent
    assert say(reader, "GET paused", "DBSIZE", "EXISTS paused") == [b"$-1\r\n", b":0\r\n", b":0\r\n"]
    assert say(other, "CLIENT UNPAUSE") == [b"+OK\r\n"]
    assert [writer.reply(), writer.reply(), script.reply()] == [b"+OK\r\n", b"$1\r\n1\r\n", b"+OK\r\n"]
    assert say(reader, "GET paused", "MGET paused paused:too") == [
        b"$1\r\n1\r\n",
        b"*2\r\n$1\r\n1\r\n$1\r\n1\r\n",
    ]


def test_a_pause_of_all_is_not_taken_for_a_failing_server(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    proxy = ready(proxy_factory(own_server.address, shards=1, breaker_silence_ms=200), eventually)
    clients = [wires(proxy.listen) for _ in range(20)]
    say(clients[0], "CLIENT PAUSE 800 ALL")
    for client in clients:
        client.send([words("INCR paused:all")])
    replies = sorted(int(client.reply()[1:]) for client in clients)
    assert replies == list(range(1, 21))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_user_who_may_not_select_keeps_the_database_that_was_chosen_before(
    own_server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually, protocol: int
) -> None:
    ask(own_server.address, "ACL", "SETUSER", "bob", "on", ">secret", "+get", "+set", "+eval", "~*")
    proxy = ready(proxy_factory(own_server.address, auth="pass_through"), eventually)
    talk = [f"HELLO {protocol}", "SELECT 9", "AUTH bob secret", "SET chosen 9", "GET chosen", "SELECT 8"]
    through, direct = say(wires(proxy.listen), *talk), say(wires(own_server.address), *talk)
    assert through[1:] == direct[1:]
    assert through[3:5] == [b"+OK\r\n", b"$1\r\n9\r\n"]
    assert say(wires(own_server.address), "SELECT 9", "GET chosen") == [b"+OK\r\n", b"$1\r\n9\r\n"]


def test_client_info_says_that_a_client_tracks_by_prefix(proxy: Any, wires: Any) -> None:
    wire = wires(proxy.listen)
    say(wire, "HELLO 3", "CLIENT TRACKING ON BCAST PREFIX cache:")
    assert b" flags=tB " in say(wire, "CLIENT INFO")[0]


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_logs_of_all_primaries_are_one(
    cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually, protocol: int
) -> None:
    proxy = ready(proxy_factory(cluster.url), eventually)
    wire = wires(proxy.listen)
    say(wire, f"HELLO {protocol}", "CONFIG SET slowlog-log-slower-than 0")
    try:
        assert say(wire, "SLOWLOG RESET") == [b"+OK\r\n"]
        say(wire, *[f"SET log:{i} 1" for i in range(9)])
        length = int(say(wire, "SLOWLOG LEN")[0][1:])
        shown = [say(wire, f"SLOWLOG GET {count}")[0].split(b"\r\n")[0] for count in (1, 8, -1)]
    finally:
        say(wire, "CONFIG SET slowlog-log-slower-than 10000")
    assert length >= 9
    assert shown[:2] == [b"*1", b"*8"]
    assert int(shown[2][1:]) >= length
    assert say(wire, "LATENCY LATEST", "LATENCY HISTORY command") == [b"*0\r\n"] * 2


@pytest.mark.parametrize("protocol", [2, 3])
def test_refused_commands_of_all_primaries_are_one_log(
    cluster: EmbeddedCluster, proxy_factory: Any, wires: Any, eventually: Eventually, protocol: int
) -> None:
    proxy = ready(proxy_factory(cluster.url, auth="pass_through"), eventually)
    wire, bob = wires(proxy.listen), wires(proxy.listen)
    say(wire, f"HELLO {protocol}", command("ACL", "SETUSER", "bob", "on", "nopass", "+@all", "~none"))
    try:
        say(wire, "ACL LOG RESET")
        say(bob, "AUTH bob any", *[f"GET refused:{i}" for i in range(6)])
        log, two = say(wire, "ACL LOG", "ACL LOG 2")
        assert log.startswith(b"*6\r\n")
        assert two.startswith(b"*2\r\n")
        assert say(wire, "ACL LOG RESET", "ACL LOG") == [b"+OK\r\n", b"*0\r\n"]
    finally:
        say(wire, "ACL DELUSER bob")


def test_what_debug_does_without_keys_is_done_before_a_cluster(
    proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    with EmbeddedCluster(3, 0, config={"enable-debug-command": "yes"}) as cluster:
        wire = wires(ready(proxy_factory(cluster.url), eventually).listen)
        assert say(wire, command("DEBUG", "ERROR", "OOM it is full")) == [b"-OOM it is full\r\n"]
        assert say(wire, "DEBUG SET-ACTIVE-EXPIRE 1", "DEBUG SLEEP 0") == [b"+OK\r\n"] * 2
        assert say(wire, "DEBUG RELOAD")[0].startswith(b"-ERR keyheat: 'debug' is about one server")


@pytest.mark.parametrize("kind", ["status", "error"])
def test_a_line_as_long_as_a_value_costs_nobody_a_connection(
    proxy: Any, valkey: str, wires: Any, kind: str
) -> None:
    script = f"return redis.{kind}_reply(string.rep('x', tonumber(ARGV[1])))"
    other = wires(proxy.listen)
    for length in ("65000", "66000", "5000000"):
        batch = [command("EVAL", script, "0", length), words("GET x")]
        direct, through = (until(wires(address), batch) for address in (valkey, proxy.listen))
        assert len(through) > int(length)
        assert through == direct
        assert say(other, "PING x") == [b"$1\r\nx\r\n"]
    assert stats(proxy)["upstream_errors"] == 0


@pytest.mark.parametrize("length", [50_000, 1_000_000])
def test_a_client_that_leaves_with_much_behind_a_blocking_command_takes_nothing(
    proxy: Any, valkey: str, wires: Any, eventually: Eventually, length: int
) -> None:
    behind = command("GET", "x" * 1_000)
    wire = wires(proxy.listen)
    wire.socket.sendall(encode(words("BLPOP jobs:behind 0")) + encode(behind) * (length // 1_000))
    is_blocked = "INFO clients"
    eventually(lambda: b"blocked_clients:1" in ask(valkey, *is_blocked.split()))
    wire.socket.close()
    eventually(lambda: b"blocked_clients:0" in ask(valkey, *is_blocked.split()))
    assert ask(valkey, "RPUSH", "jobs:behind", "job") == b":1\r\n"
    assert ask(valkey, "LPOP", "jobs:behind") == b"$3\r\njob\r\n"


def test_what_stands_behind_a_blocking_command_is_served_after_it(
    proxy: Any, valkey: str, wires: Any, eventually: Eventually
) -> None:
    wire = wires(proxy.listen)
    count = 1_000
    wire.send([words("BLPOP jobs:order 0")] + [command("ECHO", f"{n:01000}") for n in range(count)])
    eventually(lambda: b"blocked_clients:1" in ask(valkey, "INFO", "clients"))
    ask(valkey, "RPUSH", "jobs:order", "job")
    assert b"job" in wire.reply()
    for n in range(count):
        assert wire.reply() == b"$1000\r\n%01000d\r\n" % n


@pytest.mark.parametrize(
    "words",
    [
        ["3", "SETNAME", "x\nid=1 addr=10.0.0.1:1 name=forged"],
        ["2", "SETNAME", "two words"],
        ["3", "SETNAME", "plain", "SETNAME", "two words"],
        ["3", "AUTH", "default", "any", "SETNAME", "two words"],
        ["3", "SETNAME", "two words", "NOSUCH"],
        ["4", "SETNAME", "two words"],
        ["2", "SETNAME", ""],
    ],
)
def test_hello_takes_no_name_that_client_setname_refuses(
    proxy: Any, valkey: str, wires: Any, words: list[str]
) -> None:
    through, direct = (
        say(wires(address), command("HELLO", *words), "CLIENT GETNAME") for address in (proxy.listen, valkey)
    )
    assert through[1] == direct[1]
    assert through[0] == direct[0] or b"proto" in direct[0]
    assert b"forged" not in say(wires(proxy.listen), "CLIENT LIST")[0]


def test_a_client_that_says_its_end_behind_a_long_pipeline_gets_its_end(proxy: Any, wires: Any) -> None:
    for _ in range(20):
        wire = wires(proxy.listen)
        wire.socket.sendall(b"GET nothing\r\n" * 3_000)
        wire.socket.shutdown(socket.SHUT_WR)
        with wire.socket.makefile("rb") as replies:
            assert replies.read() == b"$-1\r\n" * 3_000


@pytest.mark.parametrize("before", [b"", b"SET half 1\r\n", b"CLIENT REPLY OFF\r\nSET half 1\r\n"])
def test_a_client_that_has_said_its_end_waits_for_nothing(
    proxy: Any, valkey: str, wires: Any, eventually: Eventually, before: bytes
) -> None:
    wire = wires(proxy.listen)
    wire.socket.sendall(before + b"BLPOP jobs:half 0\r\n")
    wire.socket.shutdown(socket.SHUT_WR)
    with wire.socket.makefile("rb") as replies:
        assert replies.read() in (b"", b"+OK\r\n"), "its end"
    eventually(lambda: b"blocked_clients:0" in ask(valkey, "INFO", "clients"))
    assert ask(valkey, "RPUSH", "jobs:half", "job") == b":1\r\n"
    assert ask(valkey, "LPOP", "jobs:half") == b"$3\r\njob\r\n"


def test_nothing_is_taken_for_a_client_that_leaves_right_after_its_command(
    proxy: Any, valkey: str, wires: Any
) -> None:
    for pause_s in (0, 0.01, 0.03, 0.06):
        for line in (b"BLPOP jobs:left 0\r\n", b"BRPOPLPUSH jobs:left jobs:right 0\r\n"):
            wire = wires(proxy.listen)
            wire.socket.sendall(line)
            time.sleep(pause_s)
            wire.socket.close()
            time.sleep(0.03)
            assert ask(valkey, "RPUSH", "jobs:left", "job") == b":1\r\n"
            assert ask(valkey, "LPOP", "jobs:left") == b"$3\r\njob\r\n"
    # Others wait on connections of their own, and none of the two is taken for the other's.
    stays, leaves = wires(proxy.listen), wires(proxy.listen)
    for wire in (stays, leaves):
        wire.socket.sendall(b"BLPOP jobs:left 0\r\n")
    leaves.socket.close()
    time.sleep(0.05)
    assert ask(valkey, "RPUSH", "jobs:left", "job") == b":1\r\n"
    assert stays.reply() == b"*2\r\n$9\r\njobs:left\r\n$3\r\njob\r\n"


def test_what_is_there_for_a_blocking_command_is_given_to_one_that_has_said_its_end(
    proxy: Any, valkey: str, wires: Any
) -> None:
    for _ in range(20):
        ask(valkey, "RPUSH", "jobs:there", "job")
        wire = wires(proxy.listen)
        wire.socket.sendall(b"BLPOP jobs:there 0\r\n")
        wire.socket.shutdown(socket.SHUT_WR)
        with wire.socket.makefile("rb") as replies:
            assert replies.read() == b"*2\r\n$10\r\njobs:there\r\n$3\r\njob\r\n"
