"""Failover: a primary is lost, another takes over, and clients of the proxy go on."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from keyheat.server.binary import find_binary
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.mitigate.sentinels import SERVICE, sentinel
from tests.proxy.test_replicas import connect, replicate

# Time from the servers' own failover to the first write that goes through the proxy again. The target is one
# second; a busy machine is given more.
BACK_WITHIN_S = 2.5


class Writer:
    """Writes numbers, one after the other, and remembers which were acknowledged, and when."""

    def __init__(self, client: redis.Redis, key: str) -> None:
        self._client = client
        self._key = key
        self._stop = threading.Event()
        self.acknowledged: list[tuple[float, int]] = []
        self.faults: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            token = f"{self._key}-{number}"
            try:
                if self._client.echo(token) != token.encode():
                    self.faults.append(f"a wrong reply to {token}")
                self._client.rpush(self._key, number)
                self.acknowledged.append((time.monotonic(), number))
            except redis.RedisError:
                time.sleep(0.005)

    def first_after(self, moment: float) -> float | None:
        """When the first write after a moment was acknowledged."""
        return next((at for at, _ in self.acknowledged if at > moment), None)


def promoted(servers: list[EmbeddedServer]) -> EmbeddedServer | None:
    for server in servers:
        try:
            with server.client(socket_timeout=0.5) as client:
                if client.execute_command("ROLE")[0] == b"master":
                    return server
        except redis.RedisError:
            continue
    return None


def wait_until(what: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_a_failover_by_sentinel_is_followed(how: str, proxy_factory: Any, tmp_path: Path) -> None:
    with EmbeddedServer() as primary, EmbeddedServer() as one, EmbeddedServer() as two:
        for replica in (one, two):
            replicate(replica, primary)
        with sentinel(find_binary(), primary, tmp_path) as port:
            proxy = proxy_factory(f"redis+sentinel://127.0.0.1:{port}/{SERVICE}", log="error")
            with connect(proxy, socket_timeout=10) as client, Writer(client, "list") as writer:
                wait_until(lambda: len(writer.acknowledged) > 50)
                primary.kill() if how == "killed" else primary.pause()
                new = wait_until(lambda: promoted([one, two]))
                began = time.monotonic()
                back = wait_until(lambda: writer.first_after(began))
            if how == "paused":
                primary.resume()
            assert not writer.faults
            assert back - began < BACK_WITHIN_S
            kept = {int(n) for n in new.client().lrange("list", 0, -1)}
            lost = [n for at, n in writer.acknowledged if n not in kept and at > began]
            assert not lost


def test_a_promoted_replica_is_used_before_the_sentinel_names_it(proxy_factory: Any, tmp_path: Path) -> None:
    with EmbeddedServer() as primary, EmbeddedServer() as one, EmbeddedServer() as two:
        for replica in (one, two):
            replicate(replica, primary)
        with sentinel(find_binary(), primary, tmp_path) as port, redis.Redis(port=port) as asked:

            def is_named() -> bool:
                _, named = asked.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                return int(named) != primary.port

            proxy = proxy_factory(f"redis+sentinel://127.0.0.1:{port}/{SERVICE}")
            with connect(proxy, socket_timeout=10) as client, Writer(client, "list") as writer:
                wait_until(lambda: len(writer.acknowledged) > 50)
                primary.kill()
                # It asks the replica that it promotes once a second whether it is the primary yet.
                wait_until(lambda: promoted([one, two]))
                began = time.monotonic()
                wait_until(is_named)
                named = time.monotonic()
            back = writer.first_after(began)
            assert back is not None
            assert back < named
            assert not writer.faults


def test_a_promoted_replica_is_kept_to_though_its_sentinel_falls_silent(
    proxy_factory: Any, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        primary, one, two = [stack.enter_context(EmbeddedServer()) for _ in range(3)]
        for replica in (one, two):
            replicate(replica, primary)
        asked = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            port = stack.enter_context(sentinel(find_binary(), primary, tmp_path / name))
            asked.append(stack.enter_context(redis.Redis(port=port)))

        def others(client: redis.Redis) -> int:
            return len(client.execute_command("SENTINEL", "SENTINELS", SERVICE))

        wait_until(lambda: all(others(client) for client in asked))
        addresses = ",".join(f"127.0.0.1:{client.get_connection_kwargs()['port']}" for client in asked)
        proxy = proxy_factory(f"redis+sentinel://{addresses}/{SERVICE}")
        with connect(proxy, socket_timeout=10) as client, Writer(client, "list") as writer:
            wait_until(lambda: len(writer.acknowledged) > 50)
            primary.pause()
            heir = wait_until(lambda: promoted([one, two]))
            before = heir.client().llen("list")
            wait_until(lambda: heir.client().llen("list") > before)
            leaders = [
                each
                for each in asked
                if any(
                    "promoted" in str(row) for row in each.execute_command("SENTINEL", "REPLICAS", SERVICE)
                )
            ]
            if len(leaders) != 1:
                pytest.skip("the Sentinels were done before their leader could be stopped")
            pid = int(leaders[0].info("server")["process_id"])
            os.kill(pid, signal.SIGSTOP)
            try:
                primary.resume()
                follower = next(each for each in asked if each is not leaders[0])
                _, named = follower.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                if int(named) != primary.port:
                    pytest.skip("the Sentinels had agreed before their leader could be stopped")
                with primary.client() as direct:
                    kept = direct.llen("list")
                    until = time.monotonic() + 2
                    while time.monotonic() < until:
                        assert direct.llen("list") <= kept + 1, "what was on its way when it stopped, at most"
                        time.sleep(0.02)
                assert heir.client().llen("list") > before
            finally:
                os.kill(pid, signal.SIGCONT)
        assert not writer.faults


def test_a_failover_of_a_cluster_is_followed(proxy_factory: Any) -> None:
    with EmbeddedCluster(primaries=3, replicas=1, node_timeout_ms=1000) as cluster:
        proxy = proxy_factory(cluster.url)
        old = cluster.owner("list")
        with connect(proxy, socket_timeout=10) as client, Writer(client, "list") as writer:
            wait_until(lambda: len(writer.acknowledged) > 50)
            old.kill()
            new = wait_until(lambda: promoted(cluster.replicas))
            began = time.monotonic()
            back = wait_until(lambda: writer.first_after(began))
        assert not writer.faults
        assert back - began < BACK_WITHIN_S
        kept = {int(n) for n in new.client().lrange("list", 0, -1)}
        lost = [n for at, n in writer.acknowledged if n not in kept and at > began]
        assert not lost


def test_of_several_addresses_the_one_that_is_primary_is_used(proxy_factory: Any) -> None:
    with EmbeddedServer() as primary, EmbeddedServer() as replica:
        replicate(replica, primary)
        proxy = proxy_factory(f"redis://{replica.address},{primary.address}")
        with connect(proxy) as client:
            assert client.set("k", "v")
            with primary.client() as direct:
                assert direct.get("k") == b"v"
            # They change places by hand.
            with replica.client() as direct:
                direct.execute_command("REPLICAOF", "NO", "ONE")
            with primary.client() as direct:
                direct.execute_command("REPLICAOF", "127.0.0.1", replica.port)

            def is_back() -> bool:
                try:
                    return bool(client.set("k", "w"))
                except redis.RedisError:
                    return False

            wait_until(is_back)
            with replica.client() as direct:
                assert direct.get("k") == b"w"


def test_a_sentinel_in_place_of_a_server_is_named(proxy_factory: Any, tmp_path: Path) -> None:
    with EmbeddedServer() as primary, EmbeddedServer() as one, EmbeddedServer() as two:
        for replica in (one, two):
            replicate(replica, primary)
        with sentinel(find_binary(), primary, tmp_path) as port:
            proxy = proxy_factory(f"redis://127.0.0.1:{port}")
            with connect(proxy) as client, pytest.raises(redis.ResponseError, match=r"redis\+sentinel://"):
                client.get("k")
            wrong = proxy_factory(f"redis+sentinel://127.0.0.1:{port}/nothing")
            with connect(wrong) as client, pytest.raises(redis.ResponseError, match=r"no service .nothing."):
                client.get("k")
