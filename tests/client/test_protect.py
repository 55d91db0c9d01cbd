"""A protected client is the client it was: its classes, methods, sessions, errors and settings."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import redis
import redis.asyncio

from keyheat.client import ClientSettings, protect
from keyheat.errors import ConfigError
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer, free_ports
from tests.client.libraries import cluster_class, cluster_client, exceptions, single_class, single_client
from tests.client.sides import RULES, Side, hits, is_local, raw, until_local

Eventually = Callable[..., Any]
LIBRARIES = ("redis", "valkey")


# ---------------------------------------------------------------- what it is


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_protected_client_is_an_instance_of_its_class(side: Side, valkey: str, library: str) -> None:
    own = single_class(library, side.kind)
    given = single_client(library, side, valkey)
    names, shown = set(dir(given)), repr(given)
    client = side.protect(given)
    plain = raw(client)
    assert isinstance(plain, own)
    assert issubclass(type(plain), own)
    assert type(plain).__name__ == own.__name__
    assert type(plain).__qualname__ == own.__qualname__
    assert type(plain).__module__ == own.__module__
    assert type(plain).__doc__ == own.__doc__
    assert repr(plain) == shown
    assert names <= set(dir(plain))
    client.set("hot", "1")
    until_local(client, lambda: client.get("hot"))
    assert client.get("hot") == b"1"
    with pytest.raises(exceptions(library).ResponseError, match="WRONGTYPE"):
        client.lpush("hot", "x")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_protected_cluster_client_is_an_instance_of_its_class(
    side: Side, cluster: EmbeddedCluster, library: str
) -> None:
    own = cluster_class(library, side.kind)
    given = cluster_client(library, side, cluster.primaries[0].address)
    names = set(dir(given))
    client = side.protect(given)
    plain = raw(client)
    assert isinstance(plain, own)
    assert type(plain).__qualname__ == own.__qualname__
    assert names <= set(dir(plain))
    for number in range(20):
        client.set(f"key:{number}", number)
    reads = [partial(client.get, f"key:{number}") for number in range(20)]
    until_local(client, *reads)
    assert [read() for read in reads] == [b"%d" % number for number in range(20)]
    with pytest.raises(exceptions(library).ResponseError, match="WRONGTYPE"):
        client.lpush("key:1", "x")


def test_protecting_again_changes_nothing(side: Side, valkey: str) -> None:
    client = side.protected(valkey)
    before = type(raw(client)), raw(client).keyheat
    assert protect(raw(client), rules=RULES) is raw(client)
    assert (type(raw(client)), raw(client).keyheat) == before


def test_what_was_given_is_protected_too(side: Side, valkey: str) -> None:
    given = side.plain(valkey)
    client = side.protect(given, max_staleness=5.0)
    client.set("hot", 0)
    until_local(client, lambda: client.get("hot"))
    for number in range(100):
        (given if number % 2 else client).set("hot", number)
        assert client.get("hot") == given.get("hot") == b"%d" % number
    until_local(client, lambda: given.get("hot"))
    raw(given).set_response_callback("GET", lambda reply, **_: ("called", reply))
    assert client.get("other") == ("called", None)


def test_a_class_of_ones_own_keeps_what_it_overrides(valkey: str) -> None:
    class Own(redis.Redis):
        calls = 0

        def execute_command(self, *args: Any, **options: Any) -> Any:
            self.calls += 1
            own: Any = super()
            return own.execute_command(*args, **options)

        def greet(self) -> str:
            return "hello"

    host, port = valkey.split(":")
    with closing(protect(Own(host, int(port)), rules=RULES, hot_keys_max=999)) as client:
        client.set("hot", "1")
        assert client.calls == 1
        assert client.greet() == "hello"
        reads = 0

        def read() -> None:
            nonlocal reads
            reads += 1
            client.get("hot")

        until_local(client, read)
        # Each read was either answered from memory or went through the override.
        assert client.calls == 1 + reads - hits(client)


def test_with_statements_end_it(valkey: str) -> None:
    host, port = valkey.split(":")
    with protect(redis.Redis(host, int(port)), rules=RULES) as client:
        client.set("a", "1")
        assert client.get("a") == b"1"

    async def run() -> Any:
        async with protect(redis.asyncio.Redis(host=host, port=int(port)), rules=RULES) as client:
            return await client.get("a")

    assert asyncio.run(run()) == b"1"


# ---------------------------------------------------------------- sessions and what is sent together


@pytest.mark.parametrize("is_transaction", [True, False])
def test_pipelines_answer_as_ever(side: Side, valkey: str, is_transaction: bool) -> None:
    client, plain = side.protected(valkey), side.plain(valkey)
    client.set("hot", "1")
    until_local(client, lambda: client.get("hot"))
    for each in (client, plain):
        pipe = each.pipeline(transaction=is_transaction)
        assert isinstance(raw(pipe), type(raw(plain.pipeline())))
        pipe.get("hot")
        pipe.incr("hot")
        pipe.lpush("hot", "x")
        pipe.get("hot")
        replies = pipe.execute(raise_on_error=False)
        assert replies[0] == (b"1" if each is client else b"2")
        assert replies[1] == (2 if each is client else 3)
        assert isinstance(replies[2], redis.ResponseError)
        assert replies[3] == (b"2" if each is client else b"3")
        assert pipe.execute() == []


def test_pipeline_reads_are_never_local(side: Side, valkey: str) -> None:
    client, plain = side.protected(valkey, {"max_staleness": 5.0}), side.plain(valkey)
    client.set("hot", 0)
    until_local(client, lambda: client.get("hot"))
    for number in range(50):
        plain.set("hot", number)
        pipe = client.pipeline()
        pipe.get("hot")
        assert pipe.execute() == [b"%d" % number]


def test_a_watch_with_reads_in_between_notices_a_change(side: Side, valkey: str) -> None:
    client, plain = side.protected(valkey, {"max_staleness": 5.0}), side.plain(valkey)
    client.set("hot", 0)
    until_local(client, lambda: client.get("hot"))
    pipe = client.pipeline()
    pipe.watch("hot")
    plain.set("hot", 7)
    # Read after the change: from the server, as EXEC will be judged by the server.
    assert pipe.get("hot") == b"7"
    pipe.multi()
    pipe.set("hot", 8)
    with pytest.raises(redis.WatchError):
        pipe.execute()
    pipe.watch("hot")
    number = int(pipe.get("hot"))
    pipe.multi()
    pipe.set("hot", number + 1)
    pipe.get("hot")
    assert pipe.execute() == [True, b"8"]
    pipe.reset()


def test_concurrent_transactions_lose_no_increment(side: Side, valkey: str) -> None:
    client = side.protected(valkey)
    client.set("hot", 0)
    until_local(client, lambda: client.get("hot"))
    if side.is_aio:

        async def one() -> None:
            async def increment(pipe: Any) -> None:
                value = int(await pipe.get("hot"))
                pipe.multi()
                pipe.set("hot", value + 1)

            for _ in range(25):
                await raw(client).transaction(increment, "hot")
                await raw(client).get("hot")

        async def all_of_them() -> None:
            await asyncio.gather(*(one() for _ in range(4)))

        side.loop.run(all_of_them())
    else:

        def increment(pipe: Any) -> None:
            value = int(pipe.get("hot"))
            pipe.multi()
            pipe.set("hot", value + 1)

        def run() -> None:
            for _ in range(25):
                client.transaction(increment, "hot")
                client.get("hot")

        in_threads(run, 4)
    assert client.get("hot") == b"100"


def test_commands_within_multi_by_hand_are_queued(side: Side, valkey: str) -> None:
    client = side.protected(valkey, single_connection_client=True)
    client.set("hot", "1")
    until_local(client, lambda: client.get("hot"))
    client.execute_command("MULTI")
    assert client.execute_command("GET", "hot") == b"QUEUED"
    assert client.execute_command("EXEC") == [b"1"]
    until_local(client, lambda: client.get("hot"))
    client.execute_command("WATCH", "hot")
    assert not is_local(client, lambda: client.get("hot"))
    client.execute_command("UNWATCH")
    assert is_local(client, lambda: client.get("hot"))


def test_a_client_of_one_connection_is_protected_too(side: Side, valkey: str) -> None:
    client = side.protected(valkey)
    one = client.client()
    try:
        assert isinstance(raw(one), type(raw(client)))
        one.set("hot", "1")
        until_local(one, lambda: one.get("hot"))
        assert one.get("hot") == b"1"
    finally:
        one.aclose() if side.is_aio else one.close()


def test_scripts_run(side: Side, valkey: str) -> None:
    client = side.protected(valkey)
    client.set("hot", "1")
    until_local(client, lambda: client.get("hot"))
    script = client.register_script("return {redis.call('GET', KEYS[1]), ARGV[1]}")
    assert script(keys=["hot"], args=["x"]) == [b"1", b"x"]
    pipe = client.pipeline()
    script(keys=["hot"], args=["y"], client=pipe)
    assert pipe.execute() == [[b"1", b"y"]]
    client.script_flush()
    assert script(keys=["hot"], args=["z"]) == [b"1", b"z"]


def test_subscriptions_work_beside_local_reads(side: Side, valkey: str, eventually: Eventually) -> None:
    client = side.protected(valkey)
    client.set("hot", "1")
    until_local(client, lambda: client.get("hot"))
    pubsub = client.pubsub()
    pubsub.subscribe("news")
    assert eventually(lambda: pubsub.get_message(timeout=1))["type"] == "subscribe"
    client.publish("news", "hello")
    message = eventually(lambda: pubsub.get_message(timeout=1))
    assert (message["type"], message["data"]) == ("message", b"hello")
    assert is_local(client, lambda: client.get("hot"))
    pubsub.aclose() if side.is_aio else pubsub.close()


def test_monitor_shows_what_is_sent_and_local_reads_are_not(sync: Side, valkey: str) -> None:
    client = sync.protected(valkey)
    client.set("hot", "1")
    until_local(client, lambda: client.get("hot"))
    with client.monitor() as monitor:
        for _ in range(100):
            client.get("hot")
        client.get("the end")
        seen = []
        for command in monitor.listen():
            seen.append(command["command"])
            if "the end" in command["command"]:
                break
    assert seen.count("GET hot") < 20


def test_iterators_see_everything(side: Side, valkey: str) -> None:
    client = side.protected(valkey)
    client.sadd("set", *range(1000))
    client.hset("hash", mapping={str(number): number for number in range(1000)})
    client.zadd("zset", {str(number): number for number in range(1000)})
    for _ in range(5):
        assert set(client.scan_iter()) == {b"set", b"hash", b"zset"}
        assert len(set(client.sscan_iter("set"))) == 1000
        assert len(dict(client.hscan_iter("hash"))) == 1000
        assert len(dict(client.zscan_iter("zset"))) == 1000


def test_blocking_commands_block_and_wake(side: Side, valkey: str) -> None:
    client, plain = side.protected(valkey), side.plain(valkey)
    for _ in range(60):
        client.lrange("hot", 0, -1)
    assert client.blpop("hot", timeout=0.05) is None
    pusher = threading.Timer(0.1, lambda: plain.rpush("hot", "a"))
    pusher.start()
    assert client.blpop("hot", timeout=10) == (b"hot", b"a")
    pusher.join()


def test_a_lock_excludes(sync: Side, valkey: str) -> None:
    client = sync.protected(valkey)
    inside: list[int] = []
    most = []

    def run() -> None:
        for _ in range(10):
            with client.lock("lock", timeout=10, sleep=0.001):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    in_threads(run, 6)
    assert max(most) == 1
    assert len(most) == 60


def in_threads(run: Callable[[], None], count: int) -> None:
    """Run it in so many threads at once; what one raises is raised."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
        assert not each.is_alive()
    if failures:
        raise failures[0]


# ---------------------------------------------------------------- switches


def test_the_kill_switches_work_while_running(side: Side, valkey: str, eventually: Eventually) -> None:
    rules = [{**RULES[0], "min_hot_ms": 100, "cooling_ms": 100}]
    client = side.protected(valkey, {"rules": rules})
    client.set("hot", "1")

    def read() -> Any:
        return client.get("hot")

    until_local(client, read)
    client.keyheat.local_cache = False
    assert client.keyheat.stats()["cached_entries"] == 0
    assert not any(is_local(client, read) for _ in range(50))
    client.keyheat.local_cache = True
    until_local(client, read)
    client.keyheat.shadow = True
    shadowed = client.keyheat.stats()["shadow_hits"]
    assert not any(is_local(client, read) for _ in range(50))
    assert client.keyheat.stats()["shadow_hits"] >= shadowed + 40
    client.keyheat.shadow = False
    assert is_local(client, read)
    client.keyheat.clear()
    assert client.keyheat.stats()["cached_entries"] == 0
    assert not is_local(client, read)
    client.keyheat.counting = False
    eventually(lambda: client.keyheat.hot_keys() == [], timeout_s=20)
    for _ in range(100):
        client.get("new")
    time.sleep(0.3)
    assert client.keyheat.hot_keys() == []
    client.keyheat.counting = True
    until_local(client, read)


def test_shadow_mode_never_answers_locally(side: Side, valkey: str, eventually: Eventually) -> None:
    client, plain = side.protected(valkey, {"shadow": True, "max_staleness": 5.0}), side.plain(valkey)
    assert client.keyheat.shadow
    for number in range(100):
        plain.set("hot", number)
        for _ in range(3):
            assert client.get("hot") == b"%d" % number

    def shadowed() -> bool:
        client.get("hot")
        return bool(client.keyheat.stats()["shadow_hits"] > 50)

    eventually(shadowed, every_s=0)
    stats = client.keyheat.stats()
    assert (stats["local_hits"], stats["joins"]) == (0, 0)


def test_without_staleness_nothing_is_kept(side: Side, valkey: str, eventually: Callable[..., Any]) -> None:
    client = side.protected(valkey, {"max_staleness": 0})
    client.set("hot", "1")

    def is_hot() -> bool:
        client.get("hot")
        return bool(client.keyheat.stats()["hot_keys"] == 1)

    eventually(is_hot, every_s=0)
    for _ in range(200):
        client.get("hot")
    stats = client.keyheat.stats()
    assert (stats["local_hits"], stats["cached_entries"]) == (0, 0)


def test_explain_tells_what_is_done(side: Side, valkey: str) -> None:
    client = side.protected(valkey)
    assert client.keyheat.explain("cold")["is_hot"] is False
    until_local(client, lambda: client.get("hot"))
    told = client.keyheat.explain("hot")
    assert told["is_hot"] is True
    assert told["key"] == b"hot"
    assert told["rule"] == "all"
    assert told["plan"] == ["local_cache", "coalesce"]
    assert told["local_hits"] > 0
    assert told["may_read_locally"] is True
    assert told["not_caching"] == []
    assert [key["key"] for key in client.keyheat.hot_keys()] == [b"hot"]


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def client(valkey: str) -> Iterator[Any]:
    """An unprotected client."""
    host, port = valkey.split(":")
    with redis.Redis(host, int(port)) as made:
        yield made


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"nonsense": 1}, "no setting 'nonsense'; accepted: .*max_staleness"),
    "staleness too small": ({"max_staleness": 0.001}, "max_staleness: accepted: 0 "),
    "staleness almost zero": ({"max_staleness": 0.0001}, "max_staleness: accepted: 0 "),
    "staleness negative": ({"max_staleness": -1}, "max_staleness: accepted: "),
    "staleness no number": ({"max_staleness": "1"}, "max_staleness: accepted: seconds"),
    "staleness no number at all": ({"max_staleness": float("nan")}, "max_staleness: accepted: "),
    "staleness without end": ({"max_staleness": float("inf")}, "max_staleness: accepted: "),
    "staleness a truth": ({"max_staleness": True}, "max_staleness: accepted: "),
    "staleness too long": ({"max_staleness": timedelta(hours=1)}, "max_staleness: accepted: "),
    "window": ({"window": 0}, "window: accepted: 0.1 s to 600 s"),
    "wait": ({"coalesce_wait": -1}, "coalesce_wait: accepted: "),
    "connect": ({"connect_timeout": 0}, "connect_timeout: accepted: "),
    "bytes": ({"cache_bytes": 0}, "cache_bytes: accepted: an integer above 0"),
    "bytes too many": ({"cache_bytes": 10**30}, "cache_bytes: accepted: "),
    "entries": ({"cache_entries_max": 1.5}, "cache_entries_max: accepted: an integer above 0"),
    "hot keys": ({"hot_keys_max": True}, "hot_keys_max: accepted: an integer above 0"),
    "switch": ({"local_cache": "no"}, "local_cache: accepted: "),
    "settings": ({"settings": "x"}, "settings: accepted: "),
    "center": ({"center": "x"}, "center: accepted: None"),
    "no rules": ({"rules": []}, "rules: "),
    "rules a text": ({"rules": "all"}, "rules"),
    "rule incomplete": ({"rules": [{"name": "a"}]}, r"rules\[0\].match: is missing"),
    "rule without a rate": (
        {"rules": [{"name": "a", "match": {"any": True}, "levels": [{"metric": "ops"}]}]},
        r"rules\[0\].levels\[0\].*enter_per_s, enter_share, or both",
    ),
    "rule with an unknown plan": (
        {"rules": [{**RULES[0], "plan": ["magic"]}]},
        r"rules\[0\].plan\[0\].*local_cache",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_refused_by_name(client: Any, name: str) -> None:
    options, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        protect(client, **options)
    assert type(client) is redis.Redis
    assert client.ping()


@pytest.mark.parametrize("what", [None, 3, redis.Redis, "redis://localhost", redis.ConnectionPool()])
def test_what_is_no_client_is_refused(what: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be protected; accepted: a client of redis-py"):
        protect(what)


def test_a_pipeline_is_refused(client: Any) -> None:
    with pytest.raises(ConfigError, match="Pipeline cannot be protected"):
        protect(client.pipeline())


def test_a_client_class_may_have_any_name(valkey: str) -> None:
    class PipelineStore(redis.Redis):
        pass

    host, port = valkey.split(":")
    with PipelineStore(host, int(port)) as made:
        assert protect(made, rules=RULES).keyheat is not None


def test_settings_come_whole_or_one_by_one(client: Any) -> None:
    settings = ClientSettings(max_staleness=timedelta(milliseconds=50), rules=RULES)
    protect(client, settings=settings, max_staleness=0.2)
    assert client.keyheat.stats()["max_staleness_ms"] == 200.0


# ---------------------------------------------------------------- getting there


def test_a_user_without_a_right_is_told_which(side: Side, own_server: EmbeddedServer) -> None:
    with own_server.client() as admin:
        admin.set("hot", "1")
        rights = {
            "tracker": ("-client|tracking", "CLIENT TRACKING"),
            "role": ("-role", "ROLE"),
            "ttl": ("-pttl", "PTTL"),
            "info": ("-info", "INFO"),
            "keys": ("resetkeys", "hot"),
        }
        for user, (without, _) in rights.items():
            admin.execute_command("ACL", "SETUSER", user, "on", ">secret", "~*", "+@all", without)
        admin.execute_command("ACL", "SETUSER", "keys", "%R~hot")
    untold = []
    for user, (_, word) in rights.items():
        client = side.protected(own_server.address, username=user, password="secret")
        deadline = time.monotonic() + (2 if user != "keys" else 0.5)
        while not (told := client.keyheat.stats()["not_caching"]) and time.monotonic() < deadline:
            assert client.get("hot") == b"1"
        if user == "keys":
            # A right to read the key is enough: it is kept.
            until_local(client, partial(client.get, "hot"))
            assert client.keyheat.stats()["not_caching"] == []
            continue
        assert hits(client) == 0
        if not any(word.lower() in why.lower() for why in told):
            untold.append((user, told))
        if client.keyheat.explain("hot")["not_caching"] != told:
            untold.append((user, "explain"))
    assert untold == []


def test_a_password_and_a_user_are_used(side: Side, server_binary: str) -> None:
    with EmbeddedServer({"requirepass": "secret"}, binary=server_binary) as server:
        client = side.protected(server.address, password="secret")
        until_local(client, lambda: client.get("hot"))
        client.execute_command("ACL", "SETUSER", "reader", "on", ">word", "~*", "+@all")
        reader = side.protected(server.address, username="reader", password="word")
        until_local(reader, lambda: reader.get("hot"))
        wrong = side.protected(server.address, username="reader", password="wrong", retry=None)
        with pytest.raises(redis.AuthenticationError):
            wrong.get("hot")


def test_rotating_credentials_are_asked_for_at_each_connection(
    side: Side, own_server: EmbeddedServer, eventually: Eventually
) -> None:
    class Rotating(redis.CredentialProvider):
        word = "one"
        asked = 0

        def get_credentials(self) -> tuple[str, str]:
            Rotating.asked += 1
            return "rotating", Rotating.word

    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "rotating", "on", ">one", "~*", "+@all")
        client = side.protected(own_server.address, credential_provider=Rotating())
        until_local(client, lambda: client.get("hot"))
        admin.execute_command("ACL", "SETUSER", "rotating", "resetpass", ">two")
        Rotating.word = "two"
        asked = Rotating.asked
        kill_tracking(admin)
        eventually(lambda: client.keyheat.stats()["tracking_lost"] == 1)
        until_local(client, lambda: client.get("hot"))
        assert Rotating.asked > asked


def kill_tracking(admin: Any) -> int:
    """End every tracking connection at the server; returns how many there were."""
    found = [each["id"] for each in admin.client_list() if each["name"] == "keyheat-tracking"]
    for number in found:
        admin.execute_command("CLIENT", "KILL", "ID", number)
    return len(found)


def test_a_unix_socket_is_tracked(side: Side, server_binary: str, tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    with EmbeddedServer({"unixsocket": path}, binary=server_binary) as server:
        made = redis.asyncio.Redis if side.is_aio else redis.Redis
        client = side.protect(side.wrap(made(unix_socket_path=path)))
        plain = side.plain(server.address)
        plain.set("hot", "1")
        until_local(client, lambda: client.get("hot"))
        plain.set("hot", "2")
        time.sleep(0.1)
        assert client.get("hot") == b"2"


def test_a_client_made_from_a_url_or_a_pool_is_tracked(side: Side, valkey: str) -> None:
    module: Any = redis.asyncio if side.is_aio else redis
    by_url = side.protect(side.wrap(module.Redis.from_url(f"redis://{valkey}/0?protocol=3")))
    until_local(by_url, lambda: by_url.get("hot"))
    pool = module.ConnectionPool.from_url(f"redis://{valkey}/0")
    by_pool = side.protect(side.wrap(module.Redis.from_pool(pool)))
    until_local(by_pool, lambda: by_pool.get("hot"))


def test_a_pool_that_blocks_is_enough_with_one_connection(side: Side, valkey: str) -> None:
    module: Any = redis.asyncio if side.is_aio else redis
    host, port = valkey.split(":")
    pool = module.BlockingConnectionPool(host=host, port=int(port), max_connections=1, timeout=5)
    client = side.protect(side.wrap(module.Redis.from_pool(pool)))
    until_local(client, lambda: client.get("hot"))


def test_a_node_without_tracking_is_read_from_as_ever(side: Side, free_port: int) -> None:
    client = side.protected(f"127.0.0.1:{free_port}", retry=None)
    plain = side.plain(f"127.0.0.1:{free_port}", retry=None)
    for _ in range(20):
        with pytest.raises(redis.ConnectionError) as protected:
            client.get("hot")
    with pytest.raises(redis.ConnectionError) as unprotected:
        plain.get("hot")
    assert str(protected.value) == str(unprotected.value)


# ---------------------------------------------------------------- Sentinel


class Watched:
    """A primary with a replica, watched by one Sentinel."""

    def __init__(self, binary: str, directory: Any) -> None:
        self.primary = EmbeddedServer(binary=binary)
        self.replica = EmbeddedServer({"replicaof": f"127.0.0.1 {self.primary.port}"}, binary=binary)
        self.port = free_ports(1)[0]
        path = directory / "sentinel.conf"
        path.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {directory}\nsentinel resolve-hostnames no\n"
            f"sentinel monitor shop 127.0.0.1 {self.primary.port} 1\n"
            "sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 3000\n"
        )
        self._process = subprocess.Popen(
            [binary, str(path), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def close(self) -> None:
        """End all three."""
        self._process.kill()
        self._process.wait()
        self.primary.close()
        self.replica.close()


@pytest.fixture
def watched(server_binary: str, tmp_path: Any, eventually: Eventually) -> Iterator[Watched]:
    """A primary with a replica, watched by one Sentinel that knows both."""
    made = Watched(server_binary, tmp_path)

    def is_ready() -> bool:
        try:
            with redis.Redis("127.0.0.1", made.port) as sentinel, made.replica.client() as replica:
                found = sentinel.sentinel_slaves("shop")
                return len(found) == 1 and replica.info("replication")["master_link_status"] == "up"
        except redis.RedisError:
            return False

    eventually(is_ready, timeout_s=30)
    yield made
    made.close()


def test_a_client_by_sentinel_follows_the_primary(
    side: Side, watched: Watched, eventually: Eventually
) -> None:
    import redis.asyncio.sentinel  # noqa: PLC0415
    import redis.sentinel  # noqa: PLC0415

    module: Any = redis.asyncio.sentinel if side.is_aio else redis.sentinel
    sentinel = module.Sentinel([("127.0.0.1", watched.port)])
    own = sentinel.master_for("shop", socket_timeout=1)
    name = type(own).__name__
    client = side.protect(side.wrap(own))
    assert type(raw(client)).__name__ == name
    client.set("hot", "1")
    until_local(client, lambda: client.get("hot"))
    reader = side.protect(side.wrap(sentinel.slave_for("shop", socket_timeout=1)))
    assert reader.keyheat.explain("hot")["may_read_locally"] is False
    eventually(lambda: reader.get("hot") == b"1")
    for _ in range(100):
        reader.get("hot")
    assert hits(reader) == 0
    # The primary goes; what is read then is what the new one holds, and is kept again.
    watched.primary.kill()

    def is_written() -> bool:
        try:
            return bool(client.set("hot", "2"))
        except redis.RedisError:
            return False

    eventually(is_written, timeout_s=30)
    assert client.get("hot") == b"2"
    until_local(client, lambda: client.get("hot"))
    with watched.replica.client() as direct:
        direct.set("hot", "3")
    time.sleep(0.1)
    assert client.get("hot") == b"3"
    if side.is_aio:
        for each in sentinel.sentinels:
            side.loop.run(each.aclose())
    else:
        for each in sentinel.sentinels:
            each.close()


def test_importing_the_package_imports_no_client_library() -> None:
    code = "import sys, keyheat.client; print(sorted({'redis', 'valkey'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
