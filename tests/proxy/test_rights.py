"""`auth = "pass_through"`: what the proxy does itself, it does only for users who may."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import ready
from tests.proxy.wire import Wire, ask, say, tell, words

Eventually = Callable[..., Any]

NO_CLIENT = "9223372036854775807"


@pytest.fixture
def server(own_server: EmbeddedServer) -> EmbeddedServer:
    """A server with users: `ro` may only read, `ops` may only look at clients."""
    tell(
        own_server.address,
        "ACL SETUSER service on >s3cret ~* &* +@all",
        "ACL SETUSER bob on >b ~* &* +@all",
        "ACL SETUSER ro on >r ~* +get",
        "ACL SETUSER ops on >o ~* +get +client|list +client|id",
    )
    return own_server


@pytest.fixture
def proxy(server: EmbeddedServer, proxy_factory: Any, eventually: Eventually) -> Any:
    """A proxy with an account of its own before it."""
    return ready(proxy_factory(f"redis://service:s3cret@{server.address}", auth="pass_through"), eventually)


@pytest.mark.parametrize(
    "line",
    [
        "CLIENT LIST",
        "CLIENT LIST TYPE normal",
        "CLIENT KILL 10.0.0.1:1",
        f"CLIENT KILL ID {NO_CLIENT}",
        "CLIENT KILL no such thing",
        f"CLIENT UNBLOCK {NO_CLIENT}",
        "CLIENT PAUSE 1",
        "CLIENT NO-EVICT on",
        "CLIENT REPLY off",
        "CLIENT ID",
        "CLIENT GETNAME",
        "CLIENT SETNAME x",
        "CLIENT INFO",
        "CLIENT KILL",
    ],
)
@pytest.mark.parametrize("protocol", [2, 3])
def test_a_user_hears_the_server_on_what_it_may_not_ask_about_clients(
    proxy: Any, server: EmbeddedServer, wires: Any, line: str, protocol: int
) -> None:
    heard = []
    for address in (proxy.listen, server.address):
        wire = wires(address)
        say(wire, f"HELLO {protocol} AUTH ro r")
        heard.append(say(wire, line, "GET none", line, line, "CLIENT LIST"))
    through, direct = heard
    assert through == direct
    assert all(b"-NOPERM" in direct[at] for at in (0, 2, 3, 4)) or line == "CLIENT KILL"


def test_who_may_is_served_and_nobody_else_is_killed_or_seen(
    proxy: Any, server: EmbeddedServer, wires: Any
) -> None:
    bob, ro, ops = (wires(proxy.listen) for _ in range(3))
    number = say(bob, "AUTH bob b", "CLIENT SETNAME bob", "CLIENT ID")[2].decode().strip()[1:]
    say(ro, "AUTH ro r")
    say(ops, "AUTH ops o")
    for wire in (ro, ops):
        assert say(wire, f"CLIENT KILL ID {number}", "CLIENT KILL USER bob")[1].startswith(b"-NOPERM")
    assert b"name=bob" in say(ops, "CLIENT LIST")[0]
    assert say(ops, "CLIENT ID")[0].startswith(b":")
    refused = say(ops, "CLIENT INFO")[0]
    assert refused == b"-NOPERM User ops has no permissions to run the 'client|info' command\r\n"
    assert say(bob, "CLIENT GETNAME", "CLIENT KILL USER ro") == [b"$3\r\nbob\r\n", b":1\r\n"]
    with pytest.raises(EOFError):
        say(ro, "GET none")
    # What is refused stands where an operator looks for it.
    assert b"client|kill" in ask(server.address, "ACL", "LOG")


def test_a_blocked_client_is_woken_by_those_who_may(proxy: Any, wires: Any) -> None:
    bob, other, ro = (wires(proxy.listen) for _ in range(3))
    number = say(bob, "AUTH bob b", "CLIENT ID")[1].decode().strip()[1:]
    say(other, "AUTH bob b")
    say(ro, "AUTH ro r")
    bob.send([[b"BLPOP", b"none", b"20"]])
    time.sleep(0.1)
    assert say(ro, f"CLIENT UNBLOCK {number}")[0].startswith(b"-NOPERM")
    assert say(other, f"CLIENT UNBLOCK {number}") == [b":1\r\n"]
    assert bob.reply() in {b"*-1\r\n", b"$-1\r\n"}


def test_a_right_to_ask_about_clients_that_changes_holds_no_longer_than_the_bound(
    proxy: Any, server: EmbeddedServer, wires: Any
) -> None:
    wire = wires(proxy.listen)
    say(wire, "AUTH ops o")

    def may() -> bool:
        return not say(wire, "CLIENT LIST")[0].startswith(b"-NOPERM")

    assert may()
    for change in ("-client|list", "+client|list", "-client|list"):
        ask(server.address, "ACL", "SETUSER", "ops", change)
        changed = time.monotonic()
        wanted = change.startswith("+")
        while True:
            asked = time.monotonic()
            if may() is wanted:
                break
            # A no is not kept at all.
            assert not wanted
            assert asked - changed < 0.15, change


def test_many_clients_of_a_user_ask_once(proxy: Any, server: EmbeddedServer, wires: Any) -> None:
    clients: list[Wire] = [wires(proxy.listen) for _ in range(40)]
    for wire in clients:
        say(wire, "AUTH bob b")
    time.sleep(0.25)
    for wire in clients:
        wire.send([[b"CLIENT", b"GETNAME"]])
    assert {wire.reply() for wire in clients} == {b"$-1\r\n"}
    stats = ask(server.address, "INFO", "commandstats").decode()
    # Each shard asks, and once more while it is in use.
    assert 1 <= int(stats.split("cmdstat_client|getname:calls=")[1].split(",")[0]) < 20


def test_who_cannot_be_asked_about_may_not(proxy: Any, server: EmbeddedServer, wires: Any) -> None:
    wire = wires(proxy.listen)
    say(wire, "AUTH bob b")
    server.kill()
    assert say(wire, "CLIENT LIST")[0].startswith(b"-ERR keyheat: ")


# ---------------------------------------------------------------- `MULTI`


def change(server: EmbeddedServer, user: str, *rules: str) -> None:
    """Other rights from now on."""
    assert ask(server.address, "ACL", "SETUSER", user, *rules) == b"+OK\r\n"


@pytest.mark.parametrize("batch", [True, False])
def test_who_may_not_open_a_transaction_hears_so_and_goes_on(
    proxy: Any, server: EmbeddedServer, wires: Any, batch: bool
) -> None:
    change(server, "ro", "+set", "+exec")
    lines = ["MULTI", "SET alone 1", "EXEC", "GET alone", "MULTI", "GET alone"]
    heard = []
    for address in (proxy.listen, server.address):
        wire = wires(address)
        say(wire, "AUTH ro r")
        heard.append(say(wire, *lines) if batch else [say(wire, line)[0] for line in lines])
    assert heard[0] == heard[1]
    assert heard[0][0] == b"-NOPERM User ro has no permissions to run the 'multi' command\r\n"


def test_a_right_to_transactions_that_is_taken_away_costs_one_connection_at_most(
    proxy: Any, server: EmbeddedServer, wires: Any
) -> None:
    transaction = ("MULTI", "GET none", "EXEC", "GET none")
    done = [b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n$-1\r\n", b"$-1\r\n"]
    change(server, "ro", "+exec", "+multi")
    wire = wires(proxy.listen)
    say(wire, "AUTH ro r")
    assert say(wire, *transaction) == done
    change(server, "ro", "-multi")
    assert wire.ask("MULTI") == b"+OK\r\n", "it held a moment ago"
    assert wire.ask("GET", "none").startswith(b"-NOPERM"), "and the server says that it does not now"
    wire = wires(proxy.listen)
    say(wire, "AUTH ro r")
    replies = say(wire, *transaction)
    assert replies[0].startswith(b"-NOPERM")
    assert replies[1:] == [b"$-1\r\n", b"-ERR EXEC without MULTI\r\n", b"$-1\r\n"]
    change(server, "ro", "+multi")
    assert say(wire, *transaction) == done


def test_the_right_to_transactions_is_seldom_asked(proxy: Any, server: EmbeddedServer, wires: Any) -> None:
    change(server, "ro", "+exec", "+multi")
    wire, monitor = wires(proxy.listen), wires(server.address)
    say(wire, "AUTH ro r", "MULTI", "GET none", "EXEC")
    say(monitor, "MONITOR")
    for _ in range(5):
        time.sleep(0.12)
        say(wire, "MULTI", "GET none", "EXEC")
    ask(server.address, "ECHO", "end")
    seen = b""
    while b"end" not in seen:
        seen += monitor.reply()
    assert seen.count(b'"MULTI"') == 5
    assert b"DISCARD" not in seen


def test_who_may_open_a_transaction_and_not_discard_one_opens_the_next(
    proxy: Any, server: EmbeddedServer, wires: Any
) -> None:
    change(server, "ro", "+multi", "+exec")
    wire = wires(proxy.listen)
    say(wire, "AUTH ro r")
    for _ in range(20):
        assert say(wire, "MULTI", "GET none", "EXEC")[2] == b"*1\r\n$-1\r\n"
        time.sleep(0.02)
    assert ask(server.address, "CLIENT", "LIST").count(b"user=ro") < 10


def test_who_may_not_open_a_transaction_in_a_cluster_hears_so(
    proxy_factory: Any, server_binary: str, wires: Any, eventually: Eventually
) -> None:
    with EmbeddedCluster(3, binary=server_binary) as cluster:
        for node in cluster.primaries:
            ask(node.address, "ACL", "SETUSER", "ro", "on", ">r", "~*", "+get", "+cluster")
        wire = wires(ready(proxy_factory(cluster.url, auth="pass_through"), eventually).listen)
        say(wire, "AUTH ro r")
        replies = say(wire, "MULTI", "GET a", "CLIENT LIST", "GET b")
        assert [reply[:7] for reply in replies] == [b"-NOPERM", b"$-1\r\n", b"-NOPERM", b"$-1\r\n"]


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_user_without_the_right_to_ping_subscribes_as_with_the_server(
    proxy: Any, server: EmbeddedServer, wires: Any, protocol: int
) -> None:
    change(server, "ro", "-ping", "+hello", "+subscribe", "+unsubscribe", "resetchannels", "&news*")
    talk = [
        "SUBSCRIBE news.1 news.2",
        "SUBSCRIBE other",
        "PSUBSCRIBE n*",
        "UNSUBSCRIBE",
        "GET none",
        "SUBSCRIBE other",
    ]
    said = []
    for address in (server.address, proxy.listen):
        wire = wires(address)
        wire.ask("AUTH", "ro", "r")
        if protocol == 3:
            wire.ask("HELLO", "3")
        said.append([reply for each in talk for reply in subscribed(wire, each)])
    assert said[0] == said[1]
    assert sum(reply.startswith(b"-NOPERM") for reply in said[0]) == 3


def test_who_may_wait_needs_no_other_right_for_it(
    proxy: Any, server: EmbeddedServer, wires: Any, proxy_factory: Any, eventually: Eventually
) -> None:
    change(server, "ro", "+set", "+wait", "+waitaof")
    talk = ["SET k v", "WAIT 0 10", "SET k w", "WAITAOF 0 0 10", "WAIT 1 10", "GET k"]
    wire = wires(proxy.listen)
    say(wire, "AUTH ro r")
    waited = [b"+OK\r\n", b":0\r\n", b"+OK\r\n", b"*2\r\n:0\r\n:0\r\n", b":0\r\n", b"$1\r\nw\r\n"]
    assert [wire.ask(*each.split()) for each in talk] == waited
    assert say(wire, *talk) == waited
    assert b"function" not in ask(server.address, "ACL", "LOG")
    change(server, "ro", "-wait")
    time.sleep(0.2)
    assert [wire.ask("WAIT", "0", "10"), wire.ask("GET", "k")] == [
        b"-NOPERM User ro has no permissions to run the 'wait' command\r\n",
        b"$1\r\nw\r\n",
    ]
    # Without an account of the proxy's own it waits by the user's.
    other = ready(proxy_factory(server.address, auth="pass_through"), eventually)
    wire = wires(other.listen)
    change(server, "ro", "+wait")
    say(wire, "AUTH ro r", "SET k v")
    assert wire.ask("WAIT", "0", "10").startswith(b"-NOPERM User ro")
    change(server, "ro", "+function|restore")
    assert wire.ask("WAIT", "0", "10") == b":0\r\n"


def subscribed(wire: Wire, line: str) -> list[bytes]:
    """What is said to a line, of which as many replies come as it names channels, or has."""
    wire.send([words(line)])
    replies = [wire.reply()]
    if not replies[0].startswith(b"-") and line in {"SUBSCRIBE news.1 news.2", "UNSUBSCRIBE"}:
        replies.append(wire.reply())
    return replies
