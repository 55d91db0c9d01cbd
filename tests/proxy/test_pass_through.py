"""`auth = "pass_through"`: a client is at the server who it says it is."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import HOT_RULE, heat
from tests.proxy.wire import Wire, ask, command, say, tell

Eventually = Callable[..., Any]


@pytest.fixture
def server(own_server: EmbeddedServer) -> EmbeddedServer:
    """A server with users."""
    tell(
        own_server.address,
        "ACL SETUSER service on >s3cret ~* &* +@all",
        "ACL SETUSER anna on >apple ~a:* &* +@all",
        "ACL SETUSER ben on >pear ~* &* +@read +auth +hello -strlen",
    )
    return own_server


@pytest.fixture
def proxy(server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually) -> Any:
    """A proxy with an account of its own before it."""
    url = f"redis://service:s3cret@{server.address}"
    proxy = proxy_factory(url, auth="pass_through", shards=1, rules=[HOT_RULE])
    eventually(lambda: say(wires(proxy.listen), "EXISTS x") == [b":0\r\n"])
    return proxy


LINES = [
    "ACL WHOAMI",
    "AUTH anna wrong",
    "AUTH nobody x",
    "ACL WHOAMI",
    "AUTH anna apple",
    "ACL WHOAMI",
    "SET a:1 x",
    "SET b:1 x",
    "GET b:1",
    "MULTI",
    "SET b:1 x",
    "EXEC",
    "HELLO 3 AUTH ben pear",
    "ACL WHOAMI",
    "GET a:1",
    "SET a:1 y",
    "STRLEN a:1",
    "HELLO 3 AUTH ben wrong",
    "ACL WHOAMI",
    "AUTH a b c",
    "RESET",
    "ACL WHOAMI",
]


def without_ids(replies: list[bytes]) -> list[bytes]:
    """`HELLO` tells a number that no two connections share."""
    return [b"HELLO" if b"proto" in reply else reply for reply in replies]


def test_the_server_judges_and_serves_as_without_a_proxy(
    proxy: Any, server: EmbeddedServer, wires: Any
) -> None:
    through, direct = wires(proxy.listen), wires(server.address)
    for line in LINES:
        assert without_ids(say(through, line)) == without_ids(say(direct, line)), line
    again = wires(proxy.listen)
    assert without_ids(say(again, *LINES)) == without_ids(say(wires(server.address), *LINES))


def test_a_server_that_wants_a_password_gets_one(proxy: Any, server: EmbeddedServer, wires: Any) -> None:
    early = wires(proxy.listen)
    say(early, "SET a 1")
    ask(server.address, "CONFIG", "SET", "requirepass", "plum")
    # Who was let in before stays, as at the server; who comes now is not.
    assert say(early, "GET a") == [b"$1\r\n1\r\n"]
    wire, direct = wires(proxy.listen), wires(server.address)
    refused = ["GET a", "PING", "HELLO 3", "HELLO 2", "SUBSCRIBE c", "MULTI", "EXEC", "AUTH wrong"]
    for line in [*refused, "AUTH plum", "GET a"]:
        assert say(wire, line) == say(direct, line), line
    assert say(wires(proxy.listen), "HELLO 3 AUTH default plum", "GET a")[1] == b"$1\r\n1\r\n"
    # A stranger may not send much: refused by what it says it will send.
    stranger = wires(proxy.listen)
    say(stranger, "PING")
    stranger.socket.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (1 << 20))
    assert b"Protocol error" in stranger.reply()


def test_a_client_that_has_said_its_password_can_be_unblocked(
    proxy: Any, server: EmbeddedServer, wires: Any, eventually: Eventually
) -> None:
    ask(server.address, "CONFIG", "SET", "requirepass", "plum")
    blocked, other = wires(proxy.listen), wires(proxy.listen)
    say(other, "AUTH plum")
    number = say(blocked, "AUTH plum", "CLIENT ID")[1].decode()[1:].strip()
    blocked.send([command("BLPOP", "never", "0")])
    eventually(lambda: say(other, f"CLIENT UNBLOCK {number}") == [b":1\r\n"])
    assert blocked.reply() == b"*-1\r\n"
    listed = say(wires(server.address), "AUTH plum", "CLIENT LIST")[1].splitlines()
    assert [line for line in listed if b" name= " in line and b"cmd=client|list" not in line] == []


def test_who_is_let_in_may_send_much(proxy: Any, wires: Any) -> None:
    big = command("SET", "a:big", b"x" * (1 << 20))
    assert say(wires(proxy.listen), big) == [b"+OK\r\n"]
    assert say(wires(proxy.listen), "AUTH anna apple", big, "STRLEN a:big")[1:] == [
        b"+OK\r\n",
        b":1048576\r\n",
    ]


def test_every_kind_of_connection_is_the_users(proxy: Any, wires: Any, server: EmbeddedServer) -> None:
    wire = wires(proxy.listen)
    say(wire, "AUTH anna apple")
    assert b"NOPERM" in say(wire, "BLPOP b:1 0.01")[0]
    assert b"NOPERM" in say(wire, "WATCH b:1")[0]
    say(wire, "HELLO 3", "CLIENT TRACKING ON")
    assert b"NOPERM" in say(wire, "GET b:1")[0]
    say(wire, "SUBSCRIBE c")
    users = {word for word in ask(server.address, "CLIENT", "LIST").split() if word.startswith(b"user=")}
    assert users == {b"user=default", b"user=service", b"user=anna"}
    assert b" user=anna " in say(wire, "CLIENT INFO")[0]
    # Another user on the same connection: what is its own turns with it.
    assert say(wire, "AUTH ben pear", "GET b:1") == [b"+OK\r\n", b"_\r\n"]


def test_reads_from_memory_are_only_for_those_who_may(proxy: Any, server: EmbeddedServer, wires: Any) -> None:
    ask(server.address, "SET", "b:hot", "x")
    ben, anna = wires(proxy.listen), wires(proxy.listen)
    say(ben, "AUTH ben pear")
    say(anna, "AUTH anna apple")
    heat(proxy, ben, "b:hot")
    for _ in range(50):
        assert say(ben, "GET b:hot") == [b"$1\r\nx\r\n"]
        assert b"NOPERM" in say(anna, "GET b:hot")[0]
        assert b"NOPERM" in say(ben, "STRLEN b:hot")[0]


def test_a_right_that_is_taken_away_holds_no_longer_than_the_bound(
    proxy: Any, server: EmbeddedServer, wires: Any
) -> None:
    ask(server.address, "SET", "b:hot", "x")
    ben = wires(proxy.listen)
    say(ben, "AUTH ben pear")
    for change in ("-get", "+get", "resetkeys", "~*", "resetkeys", "~*", "-@all"):
        if b"NOPERM" not in say(ben, "GET b:hot")[0]:
            heat(proxy, ben, "b:hot")
        ask(server.address, "ACL", "SETUSER", "ben", change)
        changed = time.monotonic()
        may = change in {"+get", "~*"}
        while True:
            asked = time.monotonic()
            is_refused = b"NOPERM" in say(ben, "GET b:hot")[0]
            if is_refused is not may:
                break
            assert asked - changed < (1.0 if may else 0.15), change


def test_without_the_right_to_ask_nobody_else_is_answered_from_memory(
    server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually
) -> None:
    ask(server.address, "ACL", "SETUSER", "service", "-acl|dryrun")
    url = f"redis://service:s3cret@{server.address}"
    proxy = proxy_factory(url, auth="pass_through", shards=1, rules=[HOT_RULE])
    wire = wires(proxy.listen)
    eventually(lambda: say(wire, "SET k x") == [b"+OK\r\n"])

    def reason() -> str:
        say(wire, *["GET k"] * 50)
        return str(json.loads(proxy.hot())["local_cache"]["reason"])

    eventually(lambda: "cannot ask what users may do" in reason())
    assert json.loads(proxy.stats())["local_hits"] == 0


def test_a_user_who_is_no_more_must_say_who_it_is(
    proxy: Any, server: EmbeddedServer, wires: Any, eventually: Eventually
) -> None:
    anna, ben = wires(proxy.listen), wires(proxy.listen)
    say(anna, "AUTH anna apple")
    say(ben, "AUTH ben pear")
    assert say(anna, "SET a:1 x") == [b"+OK\r\n"]
    ask(server.address, "ACL", "DELUSER", "anna")
    # The server ends its connections at once; what is in flight then is told so.
    eventually(lambda: say(anna, "SET a:1 y")[0].startswith((b"-WRONGPASS", b"-NOAUTH")))
    assert say(anna, "GET a:1") == [b"-NOAUTH Authentication required.\r\n"]
    assert say(ben, "GET a:1") == [b"$1\r\nx\r\n"]
    assert say(anna, "AUTH ben pear", "GET a:1")[1] == b"$1\r\nx\r\n"


def test_connections_of_users_who_left_are_closed(
    proxy: Any, server: EmbeddedServer, eventually: Eventually
) -> None:
    with contextlib.closing(Wire(proxy.listen)) as wire:
        say(wire, "AUTH anna apple", "GET a:1", "BLPOP a:none 0.01")
        assert b"user=anna" in ask(server.address, "CLIENT", "LIST")
    eventually(lambda: b"user=anna" not in ask(server.address, "CLIENT", "LIST"))


def test_users_of_a_cluster_are_those_of_its_nodes(
    proxy_factory: Any, server_binary: str, wires: Any, eventually: Eventually
) -> None:
    with EmbeddedCluster(3, binary=server_binary) as cluster:
        for node in cluster.primaries:
            ask(node.address, "ACL", "SETUSER", "anna", "on", ">apple", "~a:*", "+@all")
        proxy = proxy_factory(cluster.url, auth="pass_through", shards=1)
        wire = wires(proxy.listen)
        eventually(lambda: say(wire, "EXISTS x")[0] == b":0\r\n")
        assert say(wire, "AUTH anna apple") == [b"+OK\r\n"]
        for i in range(20):
            assert say(wire, f"SET a:{i} 1") == [b"+OK\r\n"]
            assert b"NOPERM" in say(wire, f"SET b:{i} 1")[0]
        assert say(wire, "DBSIZE") == [b":20\r\n"]
        assert b"NOPERM" in say(wire, "MGET a:1 b:2")[0]


# ---------------------------------------------------------------- `stale_on_error_ms`


@pytest.fixture
def lasting(server: EmbeddedServer, proxy_factory: Any, wires: Any, eventually: Eventually) -> Any:
    """A proxy that gives older values in place of errors; what users may do holds for two seconds."""
    url = f"redis://service:s3cret@{server.address}"
    settings = {"max_staleness_ms": 2_000, "stale_on_error_ms": 60_000, "rules": [HOT_RULE]}
    proxy = proxy_factory(url, auth="pass_through", shards=1, **settings)
    eventually(lambda: say(wires(proxy.listen), "EXISTS x") == [b":0\r\n"])
    return proxy


def stale_answers(proxy: Any) -> int:
    """How many there were."""
    count: int = json.loads(proxy.stats())["stale_answers"]
    return count


def test_an_older_value_is_only_for_those_who_may_read_it(
    lasting: Any, server: EmbeddedServer, wires: Any
) -> None:
    ask(server.address, "SET", "b:hot", "x")
    ben, anna, nobody = (wires(lasting.listen) for _ in range(3))
    assert say(ben, "AUTH ben pear") == say(anna, "AUTH anna apple") == [b"+OK\r\n"]
    assert say(nobody, "AUTH nobody x")[0].startswith(b"-WRONGPASS")
    heat(lasting, ben, "b:hot")
    assert b"NOPERM" in say(anna, "GET b:hot")[0]
    time.sleep(0.25)  # a tick renews what was proved
    assert say(ben, "GET b:hot") == [b"$1\r\nx\r\n"]
    server.kill()
    deadline = time.monotonic() + 10
    while stale_answers(lasting) < 5:
        assert time.monotonic() < deadline
        # Another line of the same key was never asked for: nobody has said that ben may have it.
        got = say(ben, "GET b:hot", "GETRANGE b:hot 0 -1")
        assert got[0] == b"$1\r\nx\r\n"
        assert got[1].startswith(b"-")
        assert say(anna, "GET b:hot")[0].startswith(b"-")
        assert say(nobody, "AUTH anna wrong")[0].startswith(b"-")
        assert say(nobody, "GET b:hot")[0].startswith(b"-")
    # And once the server could not be asked for so long, nobody gets one.
    time.sleep(2.2)
    assert say(ben, "GET b:hot")[0].startswith(b"-")
    assert say(anna, "GET b:hot")[0].startswith(b"-")


def test_an_older_value_is_not_for_those_who_may_no_longer_read_it(
    lasting: Any, server: EmbeddedServer, wires: Any, eventually: Eventually
) -> None:
    ask(server.address, "SET", "b:hot", "x")
    ben, still = wires(lasting.listen), wires(lasting.listen)
    say(ben, "AUTH ben pear")
    say(still, "AUTH service s3cret")
    heat(lasting, ben, "b:hot")
    ask(server.address, "ACL", "SETUSER", "ben", "-get")
    eventually(lambda: b"NOPERM" in say(ben, "GET b:hot")[0])
    heat(lasting, still, "b:hot")
    time.sleep(0.25)
    say(still, "GET b:hot")
    server.kill()
    eventually(lambda: say(still, "GET b:hot") == [b"$1\r\nx\r\n"] and stale_answers(lasting) > 0)
    assert say(ben, "GET b:hot")[0].startswith(b"-")


def test_a_read_that_is_lost_on_its_way_is_not_answered_to_those_who_may_not_read(
    lasting: Any, server: EmbeddedServer, wires: Any
) -> None:
    ask(server.address, "SET", "b:hot", "x")
    ben, anna = wires(lasting.listen), wires(lasting.listen)
    say(ben, "AUTH ben pear")
    say(anna, "AUTH anna apple", "GET a:1")
    heat(lasting, ben, "b:hot")
    time.sleep(0.25)
    say(ben, "GET b:hot")
    server.pause()
    anna.send([command("GET", "b:hot")])
    time.sleep(0.2)
    server.kill()
    assert anna.reply().startswith(b"-")
