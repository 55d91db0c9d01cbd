"""Random pipelines through the proxy, reply by reply the same as a server's own.

Each connection owns its keys, and an untouched server is asked the same: whatever the two answer must
be the same bytes. With upstream connections being killed, a reply may also be keyheat's own error or
the end of the connection; it is never another request's reply, and there is always one.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import HOT_RULE
from tests.proxy.wire import Command, Wire, ask, command, encode

SECONDS = 3.0
CONNECTIONS = 8


class Script:
    """Makes up what one connection says."""

    def __init__(self, seed: int, *, has_databases: bool, has_cuts: bool) -> None:
        self._rng = random.Random(seed)
        self._has_databases = has_databases
        self._has_cuts = has_cuts

    def batches(self, tag: str) -> list[list[Command]]:
        """Pipelines, each to be sent once the one before is answered."""
        out: list[list[Command]] = [[]]
        for _ in range(self._rng.randint(1, 25)):
            some = self._rng.choice(self._makers())(tag)
            out[-1] += some
            if self._has_cuts and some[-1][0] in {b"EXEC", b"SELECT", b"BLPOP", b"UNWATCH", b"DISCARD"}:
                out.append([])
        return [batch for batch in out if batch]

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """The bytes, split anywhere."""
        at = 0
        while at < len(data):
            size = self._rng.choice([1, 7, 100, 5000, 200_000, 1 << 20])
            yield data[at : at + size]
            at += size

    def chance(self, of: float) -> bool:
        """True now and then."""
        return self._rng.random() < of

    def _makers(self) -> list[Callable[[str], list[Command]]]:
        makers: list[Callable[[str], list[Command]]] = [self._read] * 8
        makers += [self._write] * 5 + [self._many] * 2
        makers += [self._transaction, self._watched, self._blocking, self._script]
        makers.append(self._hello)
        if self._has_databases:
            makers.append(self._select)
        return makers

    def _key(self, tag: str, kind: str) -> bytes:
        return f"{tag}{{{self._rng.randint(0, 3)}}}{kind}".encode()

    def _value(self) -> bytes:
        size = self._rng.choice([0, 1, 10, 10, 10, 1000, 70_000, 300_000 if self.chance(0.1) else 5])
        return self._rng.randbytes(size)

    def _read(self, tag: str) -> list[Command]:
        key = self._key
        return [
            self._rng.choice(
                [
                    command("GET", key(tag, "s")),
                    command("get", key(tag, "s")),
                    command("STRLEN", key(tag, "s")),
                    command("GET", key(tag, "n")),
                    command("HGETALL", key(tag, "h")),
                    command("HGET", key(tag, "h"), "f1"),
                    command("HMGET", key(tag, "h"), "f1", "f2"),
                    command("ZRANGE", key(tag, "z"), "0", "-1", "WITHSCORES"),
                    command("ZSCORE", key(tag, "z"), "m1"),
                    command("LRANGE", key(tag, "l"), "0", "-1"),
                    command("EXISTS", key(tag, "n")),
                    command("GET", key(tag, "h")),
                    command("PING"),
                    command("ECHO", self._value()),
                ]
            )
        ]

    def _write(self, tag: str) -> list[Command]:
        key, number = self._key, str(self._rng.randint(0, 5))
        return [
            self._rng.choice(
                [
                    command("SET", key(tag, "s"), self._value()),
                    command("APPEND", key(tag, "s"), "x"),
                    command("INCR", key(tag, "n")),
                    command("DEL", key(tag, "s")),
                    command("HSET", key(tag, "h"), f"f{number}", self._value()),
                    command("ZADD", key(tag, "z"), number, f"m{number}"),
                    command("RPUSH", key(tag, "l"), number),
                    command("LPOP", key(tag, "l")),
                    command("GETDEL", key(tag, "n")),
                ]
            )
        ]

    def _many(self, tag: str) -> list[Command]:
        keys = [self._key(tag, "s") for _ in range(self._rng.randint(1, 6))]
        pairs = [word for key in keys for word in (key, self._value())]
        return [
            self._rng.choice(
                [
                    command("MGET", *keys),
                    command("MGET", *keys),
                    command("DEL", *keys),
                    command("EXISTS", *keys),
                    command("MSET", *pairs),
                ]
            )
        ]

    def _inside(self, place: int, tag: str) -> list[Command]:
        key = f"{tag}{{{place}}}"
        commands = [
            command("INCR", f"{key}n"),
            command("GET", f"{key}s"),
            command("SET", f"{key}s", self._value()),
        ]
        commands += [command("HGETALL", f"{key}h"), command("INCR", f"{key}h")]
        return self._rng.choices(commands, k=self._rng.randint(0, 4))

    def _transaction(self, tag: str) -> list[Command]:
        end = "EXEC" if self.chance(0.8) else "DISCARD"
        return [command("MULTI"), *self._inside(self._rng.randint(0, 3), tag), command(end)]

    def _watched(self, tag: str) -> list[Command]:
        place = self._rng.randint(0, 3)
        key = f"{tag}{{{place}}}n"
        out = [command("WATCH", key), command("GET", key)]
        if self.chance(0.2):
            return [*out, command("UNWATCH")]
        return [*out, command("MULTI"), *self._inside(place, tag), command("EXEC")]

    def _blocking(self, tag: str) -> list[Command]:
        key = self._key(tag, "l")
        return [command("RPUSH", key, "b"), command("BLPOP", key, "0.02")]

    def _hello(self, _tag: str) -> list[Command]:
        return [command("HELLO", self._rng.choice(["2", "3"]))]

    def _script(self, tag: str) -> list[Command]:
        key = self._key(tag, "s")
        return [command("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", "1", key, self._value())]

    def _select(self, _tag: str) -> list[Command]:
        return [command("SELECT", str(self._rng.randint(0, 2)))]


class Run:
    """Connections that talk to the proxy and to the oracle, until told to stop."""

    def __init__(self, proxy: str, oracle: str, *, may_fail: bool, **options: bool) -> None:
        self._proxy, self._oracle, self._may_fail, self._options = proxy, oracle, may_fail, options
        self._until = time.monotonic() + SECONDS
        self.wrong: list[str] = []
        self.compared = 0
        self.failures = 0

    def go(self) -> None:
        """Run all connections to the end."""
        threads = [threading.Thread(target=self._one, args=(i,)) for i in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one(self, index: int) -> None:
        script = Script(index, **self._options)
        life = 0
        while time.monotonic() < self._until and not self.wrong:
            life += 1
            through, direct = Wire(self._proxy), Wire(self._oracle)
            try:
                self._talk(script, f"{index}:{life}:", through, direct)
            except TimeoutError:
                self.wrong.append(f"connection {index}: nothing was read for 10 s")
            except (EOFError, ConnectionError) as error:
                self.failures += 1
                if not self._may_fail:
                    self.wrong.append(f"connection {index}: {error!r}")
            finally:
                through.close()
                direct.close()

    def _talk(self, script: Script, tag: str, through: Wire, direct: Wire) -> None:
        while time.monotonic() < self._until and not self.wrong:
            for batch in script.batches(tag):
                for piece in script.pieces(b"".join(map(encode, batch))):
                    through.socket.sendall(piece)
                direct.send(batch)
                if self._may_fail and script.chance(0.01):
                    return
                if not self._compare(batch, through, direct):
                    return

    def _compare(self, batch: list[Command], through: Wire, direct: Wire) -> bool:
        is_same = True
        for place, words in enumerate(batch):
            try:
                got, expected = through.reply(), direct.reply()
            except TimeoutError:
                asked = [b" ".join(w)[:60] for w in batch]
                self.wrong.append(f"no reply within 10 s to number {place} of {asked}")
                return False
            if words[0] == b"HELLO" or not is_same:
                continue
            if got == expected:
                self.compared += 1
            elif self._may_fail and b"keyheat" in got[:400]:
                # What follows depends on whether it ran; that it is answered is all that counts.
                self.failures += 1
                is_same = False
            else:
                before = [b" ".join(w)[:60] for w in batch[: place + 1]][-6:]
                self.wrong.append(f"{before}: {got[:120]!r}, not {expected[:120]!r}")
                return False
        return is_same


@pytest.fixture(params=["standalone", "cluster"])
def behind(request: pytest.FixtureRequest) -> str:
    """The kind of deployment behind the proxy."""
    return str(request.param)


@pytest.fixture
def upstream(behind: str, request: pytest.FixtureRequest) -> tuple[str, list[str]]:
    """What the proxy is told, and the address of each node."""
    if behind == "standalone":
        address: str = request.getfixturevalue("valkey")
        return address, [address]
    cluster: EmbeddedCluster = request.getfixturevalue("cluster")
    return cluster.url, [node.address for node in cluster.primaries]


@pytest.fixture
def started(upstream: tuple[str, list[str]], proxy_factory: Any, eventually: Any) -> Any:
    """A proxy that is ready, with everything hot."""
    proxy = proxy_factory(upstream[0], rules=[HOT_RULE], shards=2)
    eventually(lambda: ask(proxy.listen, "EXISTS", "x").startswith(b":"))
    return proxy


@pytest.mark.parametrize("has_cuts", [True, False], ids=["session-ends-await", "all-pipelined"])
def test_every_reply_is_the_servers_own(
    started: Any, behind: str, own_server: EmbeddedServer, has_cuts: bool
) -> None:
    run = Run(
        started.listen,
        own_server.address,
        may_fail=False,
        has_databases=behind == "standalone",
        has_cuts=has_cuts,
    )
    run.go()
    assert run.wrong == []
    assert run.compared > 500


def test_with_upstream_connections_killed_no_reply_is_wrong_or_missing(
    started: Any, behind: str, own_server: EmbeddedServer, upstream: tuple[str, list[str]]
) -> None:
    is_over = threading.Event()

    def kill() -> None:
        while not is_over.wait(0.1):
            for address in upstream[1]:
                ask(address, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run = Run(
            started.listen,
            own_server.address,
            may_fail=True,
            has_databases=behind == "standalone",
            has_cuts=True,
        )
        run.go()
    finally:
        is_over.set()
        killer.join()
    assert run.wrong == []
    assert run.compared > 200
    # Nothing is left behind: no blocked client, no watched key on a connection of the pool.
    time.sleep(0.3)
    for address in upstream[1]:
        clients = ask(address, "CLIENT", "LIST").decode(errors="replace").splitlines()
        ours = [line for line in clients if "name=keyheat" in line]
        assert [line for line in ours if " watch=0 " not in line] == []
        assert [line for line in ours if " flags=b" in line] == []
