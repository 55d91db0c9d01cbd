"""Routed clients on bad days: odd names, sessions, callbacks, frozen nodes, races, loops, refused threads."""

import asyncio
import gc
import os
import pickle
import signal
import threading
import time
from contextlib import closing
from typing import Any

import pytest
import redis
import redis.asyncio

import keyheat
from keyheat.errors import CircuitOpenError
from keyheat.mitigate import BreakerSettings, CopiesSettings
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.client.libraries import cluster_client, single_client
from tests.client.sides import RULES, Side, raw
from tests.client.test_routes import (
    HOT,
    REPLICAS,
    copied,
    figure,
    halving,
    pair,
    read_until_away,
)

__all__ = ["pair"]  # a fixture

Pair = tuple[EmbeddedServer, EmbeddedServer]


def until_copied(client: Any, key: Any = HOT, more: int = 50) -> None:
    """Read a key until copies have answered some more reads."""
    base = figure(client, "copies", "copy_reads")
    deadline = time.monotonic() + 10
    while figure(client, "copies", "copy_reads") < base + more:
        for _ in range(20):
            client.get(key)
        assert time.monotonic() < deadline, client.keyheat.stats()


def test_a_key_may_be_a_number(side: Side, pair: Pair) -> None:
    client = halving(side, pair[0])
    client.set(12345, "v")
    deadline = time.monotonic() + 10
    while figure(client, "replica_reads", "replica_reads") < 50:
        assert client.get(12345) == b"v"
        assert time.monotonic() < deadline


def test_keys_are_told_apart_as_the_server_does(side: Side, cluster: EmbeddedCluster) -> None:
    client = copied(side, cluster, encoding="latin-1")
    client.set("\xe9", "A")
    client.set("\xc3\xa9", "B")  # in UTF-8 the other one would be this
    until_copied(client, "\xe9")
    for _ in range(500):
        assert client.get("\xe9") == b"A"
        assert client.get("\xc3\xa9") == b"B"


def test_nothing_of_ours_comes_up_in_a_session(sync: Side, pair: Pair) -> None:
    client = halving(sync, pair[0])
    client.set(HOT, "v0")
    read_until_away(client)
    with closing(client.client()) as session:
        session.get(HOT)
        session.execute_command("MULTI")
        session.execute_command("SET", HOT, "v1")
        time.sleep(0.1)
        assert session.execute_command("EXEC") == [b"OK"]
        assert {client.get(HOT) for _ in range(50)} == {b"v1"}


def test_an_own_callback_decodes_what_replicas_say(side: Side, pair: Pair) -> None:
    client = halving(side, pair[0])
    client.set(HOT, "v0")
    client.set_response_callback("GET", lambda reply, **_: ("mine", reply))
    read_until_away(client)
    assert {client.get(HOT) for _ in range(100)} == {("mine", b"v0")}


def test_an_own_callback_does_not_hide_that_a_copy_is_missing(side: Side, cluster: EmbeddedCluster) -> None:
    client = copied(side, cluster)
    client.set(HOT, "v0")
    client.set_response_callback("GET", lambda reply, **_: "default" if reply is None else reply)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        assert client.get(HOT) == b"v0"


def test_a_frozen_primary_that_does_not_own_the_key_costs_little(
    side: Side, own_cluster: EmbeddedCluster
) -> None:
    client = copied(side, own_cluster, copies=CopiesSettings(max_staleness_ms=1000, copy_timeout_ms=100))
    client.set(HOT, "v0")
    until_copied(client)
    other = next(node for node in own_cluster.primaries if node is not own_cluster.owner(HOT))
    os.kill(other.pid, signal.SIGSTOP)
    try:
        reads, slowest_s, until = 0, 0.0, time.monotonic() + 1.5
        while time.monotonic() < until:
            began = time.monotonic()
            assert client.get(HOT) == b"v0"
            slowest_s = max(slowest_s, time.monotonic() - began)
            reads += 1
        began = time.monotonic()
        client.set(HOT, "v1")
        written_s = time.monotonic() - began
        assert {client.get(HOT) for _ in range(50)} == {b"v1"}
    finally:
        os.kill(other.pid, signal.SIGCONT)
    assert slowest_s < 0.8
    assert reads > 500
    assert written_s < 2.5  # the life of a copy, and the time-outs


def test_a_write_that_began_before_its_key_was_known_voids_too(sync: Side, cluster: EmbeddedCluster) -> None:
    client = copied(sync, cluster)
    plain = cluster_client("redis", sync, cluster.addresses[0])
    client.delete("{q}from", "{q}to")
    client.rpush("{q}to", "x")
    seen: list[int] = []

    def move() -> None:
        client.blmove("{q}from", "{q}to", 20)
        seen.extend(client.llen("{q}to") for _ in range(50))

    thread = threading.Thread(target=move)
    thread.start()
    deadline = time.monotonic() + 10
    while figure(client, "copies", "copy_reads") < 200:
        client.llen("{q}to")
        assert time.monotonic() < deadline
    plain.rpush("{q}from", "y")
    thread.join(20)
    plain.close()
    assert set(seen) == {2}


def test_what_one_client_knows_all_of_the_process_void(side: Side, cluster: EmbeddedCluster) -> None:
    settings = CopiesSettings(max_staleness_ms=1000, keys_max=1)
    first, other = (copied(side, cluster, copies=settings) for _ in range(2))
    first.set("k1", 0)
    first.set("k2", 0)
    until_copied(first, "k1")
    other.get("k2")
    until_copied(other, "k2")
    for number in range(30):
        first.set("k2", number)
        assert {other.get("k2") for _ in range(6)} == {b"%d" % number}
    first.keyheat.copies = False
    first.set("k2", "off")
    first.keyheat.copies = True
    assert {other.get("k2") for _ in range(30)} == {b"off"}


def test_own_flush_of_a_node_is_seen(side: Side, cluster: EmbeddedCluster) -> None:
    client = copied(side, cluster)
    client.set(HOT, "v0")
    until_copied(client, more=200)
    client.flushdb(target_nodes="primaries")
    assert {client.get(HOT) for _ in range(30)} == {None}


def test_a_client_lives_through_event_loops(pair: Pair) -> None:
    host, port = pair[0].address.rsplit(":", 1)
    client: Any = keyheat.protect(
        redis.asyncio.Redis(host=host, port=int(port)),
        rules=RULES,
        plans={"all": ["replica_reads"]},
        replica_reads=REPLICAS,
    )

    async def use() -> None:
        await client.set(HOT, "v0")
        before = 0
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert await client.get(HOT) == b"v0"
        await client.connection_pool.disconnect()
        assert figure(client, "replica_reads", "replica_reads") > before

    async def end() -> None:
        await client.aclose()

    for _ in range(2):
        asyncio.run(use())
    asyncio.run(end())


def test_a_refused_thread_is_not_the_applications(
    sync: Side, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("keyheat-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    client = halving(sync, pair[0])
    for number in range(200):
        client.set(HOT, number)
        assert client.get(HOT) == b"%d" % number


def test_dropped_clients_leave_no_threads_and_no_sockets(sync: Side, pair: Pair) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            client: Any = keyheat.protect(
                single_client("redis", sync, pair[0].address),
                rules=RULES,
                plans={"all": ["replica_reads"]},
                replica_reads=REPLICAS,
            )
            client.set(HOT, "v0")
            read_until_away(client)
            del client
        names = {"keyheat-routes", "keyheat-replica-reads"}
        deadline = time.monotonic() + 10
        while names & {thread.name for thread in threading.enumerate()}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        gc.enable()


def test_a_wrong_type_does_not_turn_replicas_off(side: Side, pair: Pair) -> None:
    client = halving(side, pair[0])
    client.set(HOT, "v0")
    client.delete("h")
    client.hset("h", "f", "v")
    read_until_away(client)
    before = figure(client, "replica_reads", "replica_failures")
    for _ in range(20):
        with pytest.raises(redis.ResponseError):
            client.get("h")
        client.get(HOT)
    assert figure(client, "replica_reads", "replica_failures") == before


def test_a_pipeline_that_is_turned_back_is_empty(side: Side, own_server: EmbeddedServer) -> None:
    client = side.protect(
        single_client("redis", side, own_server.address), node_breaker=BreakerSettings(calls_min=2, open_s=30)
    )
    own_server.kill()
    errors: list[Any] = []
    for _ in range(6):
        try:
            client.get(HOT)
        except redis.ConnectionError as error:
            errors.append(error)
    assert isinstance(errors[-1], CircuitOpenError)
    again = pickle.loads(pickle.dumps(errors[-1]))  # noqa: S301
    assert isinstance(again, CircuitOpenError)
    assert isinstance(again, redis.ConnectionError)
    assert again.args == errors[-1].args
    pipe = client.pipeline()
    pipe.set(HOT, "v")
    with pytest.raises(CircuitOpenError):
        pipe.execute()
    assert len(raw(pipe)) == 0


def test_a_node_that_is_named_is_asked(side: Side, cluster: EmbeddedCluster) -> None:
    client = copied(side, cluster)
    client.set(HOT, "v0")
    until_copied(client)
    before = figure(client, "copies", "copy_reads")
    for _ in range(50):
        assert client.execute_command("GET", HOT, target_nodes=client.get_node_from_key(HOT)) == b"v0"
    assert figure(client, "copies", "copy_reads") == before


def test_writes_are_not_disturbed_by_new_clients(sync: Side, pair: Pair) -> None:
    client = halving(sync, pair[0])
    client.set(HOT, "v0")
    read_until_away(client)
    failures: list[BaseException] = []
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            try:
                client.set(HOT, "v1")
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    kept = [halving(sync, pair[0]) for _ in range(50)]
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert kept
