"""Get or load, against real servers: what is stored, what is served when, and on which bad days."""

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis

from keyheat.errors import ConfigError, ShedError
from keyheat.mitigate.breaker import Breaker, BreakerSettings
from keyheat.mitigate.envelope import Json, pack, parse, plain, unpack
from keyheat.mitigate.lease import Lease
from keyheat.mitigate.loading import Loader, LoadingSettings
from keyheat.mitigate.shedder import Shedder
from keyheat.mitigate.stale_store import StaleStore
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.mitigate.crowd import Source, crowd, soon
from tests.mitigate.kinds import Clients, done, is_async, no_retry

KEY = b"item:1"


class WallClock:
    """A wall clock that is moved by hand; the server's own time is not."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


def source_for(clients: Clients, seconds: float = 0.0, value: Any = b"loaded") -> Source:
    return Source("tasks" if is_async(clients.kind) else "threads", seconds, value)


def call(loader: Loader, source: Source, key: bytes | str = KEY, ttl: Any = 60) -> Any:
    if source.way == "tasks":
        return lambda: loader.get_or_load_async(key, source.load, ttl=ttl)
    return lambda: loader.get_or_load(key, source.load, ttl=ttl)


async def got(loader: Loader, source: Source, key: bytes | str = KEY, ttl: Any = 60) -> Any:
    """One caller; what it raises is raised."""
    [outcome] = await crowd(source.way, 1, call(loader, source, key, ttl))
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def invalidate(loader: Loader) -> Any:
    return loader.invalidate_async(KEY) if loader.is_asyncio else loader.invalidate(KEY)


@pytest.fixture
def server_client(valkey: str) -> Iterator[redis.Redis]:
    host, _, port = valkey.rpartition(":")
    with redis.Redis(host, int(port)) as client:
        yield client


@pytest.fixture(params=["alone", "lease"])
def with_lease(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "lease")


def loader_for(client: Any, *, with_lease: bool = False, **more: Any) -> Loader:
    return Loader(client, lease=Lease(client) if with_lease else None, **more)


async def test_a_miss_loads_and_stores_and_a_hit_does_not_load(
    valkey: str, clients: Clients, server_client: redis.Redis, *, with_lease: bool
) -> None:
    loader = loader_for(clients.standalone(valkey), with_lease=with_lease)
    source = source_for(clients)
    assert [await got(loader, source) for _ in range(3)] == [b"loaded"] * 3
    assert source.calls == 1
    assert (loader.stats().misses, loader.stats().hits) == (1, 2)
    assert server_client.get(KEY) == b"loaded"
    assert server_client.keys() == [KEY]


@pytest.mark.parametrize("count", [64, 200])
async def test_a_crowd_is_one_load_and_three_commands(
    valkey: str, short_clients: Clients, server_client: redis.Redis, count: int
) -> None:
    loader = loader_for(short_clients.standalone(valkey), with_lease=True)
    await got(loader, source_for(short_clients), b"other")  # the scripts are known
    source = source_for(short_clients)
    source.until = lambda: loader._coalescer.stats().waiting == count - 1
    server_client.config_resetstat()
    assert await crowd(source.way, count, call(loader, source)) == [b"loaded"] * count
    assert source.calls == 1
    stats = server_client.info("commandstats")
    of_scripts = 2  # GETs of the data key, one in each script
    assert stats["cmdstat_get"]["calls"] == 1 + of_scripts
    assert stats["cmdstat_evalsha"]["calls"] == 2
    assert "cmdstat_xread" not in stats


@pytest.mark.parametrize("value", [b"\xff\x00", "é", 7, 0.5])
async def test_plain_values_lie_as_the_client_stores_them(
    valkey: str, short_clients: Clients, server_client: redis.Redis, value: Any
) -> None:
    loader = loader_for(short_clients.standalone(valkey))
    server_client.set("theirs", value)
    stored = server_client.get("theirs")
    assert [await got(loader, source_for(short_clients, value=value)) for _ in range(2)] == [stored] * 2
    assert server_client.get(KEY) == stored


async def test_plain_values_are_text_where_the_client_decodes(valkey: str, short_clients: Clients) -> None:
    loader = loader_for(short_clients.standalone(valkey, decode_responses=True), with_lease=True)
    assert [await got(loader, source_for(short_clients, value=b"x")) for _ in range(2)] == ["x"] * 2


@pytest.mark.parametrize(
    "value", [b"\xff\x00", "é", 7, 0.5, True, {"a": [1, None]}, [], "keyheat:1:", b"keyheat:1:n:0:0:0:0\n"]
)
async def test_with_an_envelope_values_come_back_as_they_were(
    valkey: str, short_clients: Clients, value: Any
) -> None:
    client = short_clients.standalone(valkey, decode_responses=True)
    loader = loader_for(client, with_lease=True, settings=LoadingSettings(format="envelope"))
    for _ in range(2):
        found = await got(loader, source_for(short_clients, value=value))
        assert (found, type(found)) == (value, type(value))


async def test_each_caller_gets_an_object_of_its_own(valkey: str, short_clients: Clients) -> None:
    loader, source = loader_for(short_clients.standalone(valkey)), source_for(short_clients, value={"a": []})
    source.until = lambda: loader._coalescer.stats().waiting == 7
    found = await crowd(source.way, 8, call(loader, source))
    assert len({id(each["a"]) for each in found}) == 8


async def test_foreign_values_are_given_as_get_gives_them_and_left_alone(
    valkey: str, short_clients: Clients, server_client: redis.Redis
) -> None:
    server_client.set(KEY, "theirs")
    loader = loader_for(short_clients.standalone(valkey), settings=LoadingSettings(format="envelope"))
    assert await got(loader, source_for(short_clients)) == b"theirs"
    assert server_client.get(KEY) == b"theirs"


@pytest.mark.parametrize(
    "raw", [b"keyheat:", b"keyheat:9:b:1:0:0:ab\nx", b"keyheat:1:j:9999999999999:0:0:ab\n{"]
)
async def test_what_cannot_be_read_is_loaded_anew(
    valkey: str, short_clients: Clients, server_client: redis.Redis, raw: bytes, *, with_lease: bool
) -> None:
    server_client.set(KEY, raw)
    loader, source = (
        loader_for(short_clients.standalone(valkey), with_lease=with_lease),
        source_for(short_clients),
    )
    assert [await got(loader, source) for _ in range(2)] == [b"loaded"] * 2
    assert source.calls == 1


async def test_nothing_is_remembered_for_a_while(
    valkey: str, clients: Clients, server_client: redis.Redis, *, with_lease: bool
) -> None:
    settings = LoadingSettings(negative_ttl_s=30, ttl_jitter=0)
    loader = loader_for(clients.standalone(valkey), with_lease=with_lease, settings=settings)
    source = source_for(clients, value=None)
    assert [await got(loader, source) for _ in range(3)] == [None] * 3
    assert source.calls == 1
    assert 0 < server_client.pttl(KEY) <= 30_000
    await done(invalidate(loader))
    source.value = b"now there"
    assert await got(loader, source) == b"now there"


async def test_nothing_is_not_remembered_if_that_is_off(
    valkey: str, short_clients: Clients, server_client: redis.Redis, *, with_lease: bool
) -> None:
    loader = loader_for(
        short_clients.standalone(valkey), with_lease=with_lease, settings=LoadingSettings(negative_ttl_s=0)
    )
    source = source_for(short_clients, value=None)
    assert [await got(loader, source) for _ in range(2)] == [None] * 2
    assert source.calls == 2
    assert server_client.keys() == []


async def test_ttls_are_jittered_and_may_be_a_timedelta(
    valkey: str, short_clients: Clients, server_client: redis.Redis
) -> None:
    loader = loader_for(short_clients.standalone(valkey))
    for number in range(30):
        await got(loader, source_for(short_clients), f"item:{number}", timedelta(seconds=1000))
    ttls_ms = [server_client.pttl(key) for key in server_client.scan_iter()]
    assert min(ttls_ms) >= 895_000
    assert max(ttls_ms) <= 1_100_000
    assert len(set(ttls_ms)) > 20


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), "60", True])
async def test_a_ttl_that_is_none_is_refused(valkey: str, short_clients: Clients, ttl: Any) -> None:
    with pytest.raises(ConfigError, match="ttl"):
        await got(loader_for(short_clients.standalone(valkey)), source_for(short_clients), ttl=ttl)


# ---------------------------------------------------------------- stale, and refreshed early


async def test_a_stale_value_is_served_while_one_refreshes_it(
    valkey: str, clients: Clients, *, with_lease: bool
) -> None:
    clock = WallClock()
    settings = LoadingSettings(stale_while_revalidate_s=30, ttl_jitter=0)
    loader = loader_for(
        clients.standalone(valkey), with_lease=with_lease, settings=settings, wall_clock=clock
    )
    source = source_for(clients, value="old")
    assert await got(loader, source) == "old"
    clock.now_s += 70
    source.value, refreshing = "new", threading.Event()
    source.until = refreshing.is_set
    assert await crowd(source.way, 20, call(loader, source)) == ["old"] * 20
    await soon(lambda: source.calls == 2)
    refreshing.set()
    await soon(lambda: not loader._refreshing)
    assert await got(loader, source) == "new"
    assert (source.calls, loader.stats().refreshes) == (2, 1)


async def test_two_processes_refresh_once(valkey: str, short_clients: Clients) -> None:
    clock = WallClock()
    settings = LoadingSettings(stale_while_revalidate_s=30, ttl_jitter=0)
    loaders = [
        loader_for(short_clients.standalone(valkey), with_lease=True, settings=settings, wall_clock=clock)
        for _ in range(2)
    ]
    source = source_for(short_clients)
    await got(loaders[0], source)
    clock.now_s += 70
    refreshing = threading.Event()
    source.until = refreshing.is_set
    assert [await got(loader, source) for loader in loaders] == [b"loaded"] * 2
    await soon(lambda: source.calls == 2 and not loaders[1]._refreshing)
    refreshing.set()
    await soon(lambda: not loaders[0]._refreshing)
    assert source.calls == 2


async def test_past_the_stale_window_it_is_loaded(valkey: str, clients: Clients, *, with_lease: bool) -> None:
    clock = WallClock()
    settings = LoadingSettings(stale_while_revalidate_s=30, ttl_jitter=0)
    loader = loader_for(
        clients.standalone(valkey), with_lease=with_lease, settings=settings, wall_clock=clock
    )
    source = source_for(clients, value="old")
    await got(loader, source)
    clock.now_s += 91
    source.value = "new"
    assert await got(loader, source) == "new"


async def test_a_value_is_kept_on_the_server_for_its_stale_window(
    valkey: str, short_clients: Clients, server_client: redis.Redis
) -> None:
    settings = LoadingSettings(stale_while_revalidate_s=30, stale_if_error_s=100, ttl_jitter=0)
    await got(loader_for(short_clients.standalone(valkey), settings=settings), source_for(short_clients))
    assert 155_000 < server_client.pttl(KEY) <= 160_000


async def test_a_stale_value_is_served_when_loading_fails_but_not_for_ever(
    valkey: str, clients: Clients, *, with_lease: bool
) -> None:
    clock = WallClock()
    settings = LoadingSettings(stale_if_error_s=30, ttl_jitter=0)
    loader = loader_for(
        clients.standalone(valkey), with_lease=with_lease, settings=settings, wall_clock=clock
    )
    source = source_for(clients, value="old")
    await got(loader, source)
    clock.now_s += 70
    source.error = ValueError("source is down")
    assert await got(loader, source) == "old"
    assert loader.stats().stale_on_error == 1
    clock.now_s += 30
    with pytest.raises(ValueError, match="source is down"):
        await got(loader, source)


async def test_a_value_that_nears_its_end_is_refreshed_before(valkey: str, short_clients: Clients) -> None:
    settings = LoadingSettings(format="envelope", early_refresh_beta=1e9, ttl_jitter=0)
    loader, source = (
        loader_for(short_clients.standalone(valkey), settings=settings),
        source_for(short_clients, 0.02),
    )
    await got(loader, source)
    source.value = b"new"
    assert await got(loader, source) == b"loaded"
    await soon(lambda: source.calls >= 2 and not loader._refreshing)
    assert await got(loader, source) == b"new"
    await soon(lambda: not loader._refreshing)  # that began another, which needs the client


async def test_without_beta_nothing_is_refreshed_early(valkey: str, short_clients: Clients) -> None:
    settings = LoadingSettings(format="envelope", early_refresh_beta=0)
    loader, source = (
        loader_for(short_clients.standalone(valkey), settings=settings),
        source_for(short_clients, 0.02),
    )
    for _ in range(20):
        await got(loader, source)
    assert (source.calls, loader.stats().refreshes) == (1, 0)


async def test_refreshes_are_bounded(valkey: str, short_clients: Clients) -> None:
    clock = WallClock()
    settings = LoadingSettings(stale_while_revalidate_s=30, ttl_jitter=0, refreshes_max=2)
    loader = loader_for(short_clients.standalone(valkey), settings=settings, wall_clock=clock)
    source = source_for(short_clients)
    keys = [f"item:{number}" for number in range(6)]
    for key in keys:
        await got(loader, source, key)
    clock.now_s += 70
    refreshing = threading.Event()
    source.until = refreshing.is_set
    for key in keys:
        assert await got(loader, source, key) == b"loaded"
    await soon(lambda: source.at_once == 2)
    assert loader.stats().refreshes == 2
    refreshing.set()
    await soon(lambda: not loader._refreshing)


# ---------------------------------------------------------------- writes in between


async def test_an_invalidation_during_the_load_keeps_it_from_being_stored(
    valkey: str, clients: Clients, server_client: redis.Redis, *, with_lease: bool
) -> None:
    loader = loader_for(clients.standalone(valkey), with_lease=with_lease)
    source = source_for(clients)
    released = threading.Event()
    source.until = released.is_set
    loading = asyncio.create_task(got(loader, source))
    await soon(lambda: source.calls == 1)
    await done(invalidate(loader))
    later = asyncio.create_task(got(loader, source_for(clients, value=b"later")))
    assert await later == b"later"
    released.set()
    assert await loading == b"loaded"
    assert server_client.get(KEY) == b"later"


async def test_refresh_loads_whatever_is_there(
    valkey: str, clients: Clients, server_client: redis.Redis
) -> None:
    loader, source = loader_for(clients.standalone(valkey), with_lease=True), source_for(clients)
    await got(loader, source)
    source.value = b"new"
    refresh = loader.refresh_async if loader.is_asyncio else loader.refresh
    assert await done(refresh(KEY, source.load, ttl=60)) == b"new"
    assert server_client.get(KEY) == b"new"


# ---------------------------------------------------------------- bad days


async def test_with_the_cache_down_loads_go_through_under_the_limit(
    own_server: EmbeddedServer, clients: Clients, *, with_lease: bool
) -> None:
    client = clients.standalone(own_server.address, socket_timeout=0.5, retry=no_retry(clients.kind))
    shedder = Shedder(2, queue=4, queue_timeout_s=10)
    loader, source = loader_for(client, with_lease=with_lease, shedder=shedder), source_for(clients, 0.3)
    own_server.kill()
    calls = [call(loader, source, b"item:%d" % number) for number in range(12)]
    outcomes = await crowd(source.way, 12, lambda: calls.pop()())  # noqa: PLW0108 - popped by each caller
    assert outcomes.count(b"loaded") == 6
    assert sum(isinstance(each, ShedError) for each in outcomes) == 6
    assert (source.at_once_max, loader.stats().cache_down) == (2, 12)


async def test_with_the_cache_down_a_crowd_of_one_key_is_one_load(
    own_server: EmbeddedServer, short_clients: Clients
) -> None:
    client = short_clients.standalone(own_server.address, retry=no_retry(short_clients.kind))
    loader, source = loader_for(client, with_lease=True), source_for(short_clients)
    source.until = lambda: loader._coalescer.stats().waiting == 31
    own_server.kill()
    assert await crowd(source.way, 32, call(loader, source)) == [b"loaded"] * 32
    assert source.calls == 1


async def test_with_the_cache_down_a_local_store_answers_first(
    own_server: EmbeddedServer, clients: Clients
) -> None:
    client = clients.standalone(own_server.address, socket_timeout=0.5, retry=no_retry(clients.kind))
    clock = WallClock()
    loader = Loader(client, local=StaleStore(10, clock=clock))
    source = source_for(clients)
    await got(loader, source)
    await got(loader, source)
    own_server.kill()
    source.value = b"newer"
    assert await got(loader, source) == b"loaded"
    assert loader.stats().local_served == 1
    clock.now_s += 11
    assert await got(loader, source) == b"newer"


async def test_a_breaker_keeps_a_paused_cache_from_costing_a_timeout_each(
    own_server: EmbeddedServer, short_clients: Clients
) -> None:
    client = short_clients.standalone(
        own_server.address, socket_timeout=0.1, retry=no_retry(short_clients.kind)
    )
    breaker = Breaker("cache", BreakerSettings(calls_min=2, open_s=60, open_max_s=60))
    loader, source = Loader(client, breaker=breaker), source_for(short_clients)
    await got(loader, source)
    own_server.pause()
    for _ in range(20):
        assert await got(loader, source) == b"loaded"
    own_server.resume()
    assert breaker.stats().turned_back == 18
    assert loader.stats().cache_down == 20


async def test_a_full_server_does_not_keep_values_from_callers(
    own_server: EmbeddedServer, short_clients: Clients, *, with_lease: bool
) -> None:
    with own_server.client() as admin:
        admin.config_set("maxmemory", 1)
    loader = loader_for(short_clients.standalone(own_server.address), with_lease=with_lease)
    assert await got(loader, source_for(short_clients)) == b"loaded"


async def test_what_the_loader_raises_passes_through(
    valkey: str, clients: Clients, *, with_lease: bool
) -> None:
    loader = loader_for(clients.standalone(valkey), with_lease=with_lease)
    source = source_for(clients)
    source.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await got(loader, source)


async def test_a_wrong_type_is_the_callers_to_see(
    valkey: str, short_clients: Clients, server_client: redis.Redis
) -> None:
    server_client.lpush(KEY, "x")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        await got(loader_for(short_clients.standalone(valkey)), source_for(short_clients))


async def test_it_works_on_a_cluster(cluster: EmbeddedCluster, clients: Clients, *, with_lease: bool) -> None:
    client = await clients.cluster(cluster.primaries[0].address)
    loader, source = loader_for(client, with_lease=with_lease), source_for(clients, value={"a": 1})
    for key in ("a", "{x}y", "a}b", ""):
        assert [await got(loader, source, key) for _ in range(2)] == [{"a": 1}] * 2
    assert source.calls == 4


def test_a_blocking_loader_refuses_a_coroutine_function(server_client: redis.Redis) -> None:
    async def load() -> bytes:
        return b"never"

    with pytest.raises(ConfigError, match="coroutine"):
        Loader(server_client).get_or_load(KEY, load, ttl=60)


def test_an_interpreter_ends_in_silence_while_refreshing(valkey: str) -> None:
    script = """
        import asyncio, sys, time
        import redis, redis.asyncio
        from keyheat.mitigate.loading import Loader, LoadingSettings
        port, way = int(sys.argv[1]), sys.argv[2]
        settings = LoadingSettings(format="envelope", early_refresh_beta=1e9)
        calls = 0
        def load():
            global calls
            calls += 1
            time.sleep(0.02 if calls == 1 else 30)
            return 1
        async def load_async():
            global calls
            calls += 1
            await asyncio.sleep(0.02 if calls == 1 else 30)
            return 1
        async def main():
            client = redis.asyncio.Redis(port=port)
            loader = Loader(client, settings)
            for _ in range(2):
                assert await loader.get_or_load_async(way, load_async, ttl=60) == 1
            await asyncio.sleep(0.05)
            await client.aclose()
        if way == "threads":
            loader = Loader(redis.Redis(port=port), settings)
            for _ in range(2):
                assert loader.get_or_load(way, load, ttl=60) == 1
        elif way == "run":
            asyncio.run(main())
        else:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())
            loop.close()
        assert calls == 2 or way == "threads"
    """
    port = valkey.rpartition(":")[2]
    for way in ("threads", "run", "close"):
        words = [sys.executable, "-X", "dev", "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(script)]
        ended = subprocess.run([*words, port, way], capture_output=True, text=True, timeout=20, check=False)
        assert (ended.returncode, ended.stderr) == (0, ""), way


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttl_jitter", 1),
        ("negative_ttl_s", -1),
        ("early_refresh_beta", -1),
        ("stale_while_revalidate_s", -1),
        ("stale_if_error_s", float("nan")),
        ("wait_s", 0),
        ("join_max_age_s", -1),
        ("loads_max", 0),
        ("refreshes_max", -1),
        ("format", "xml"),
    ],
)
def test_a_bad_setting_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        LoadingSettings(**{name: value})


# ---------------------------------------------------------------- parts


def test_an_envelope_tells_its_times_and_its_value() -> None:
    raw = pack({"a": 1}, Json(), fresh_until_s=1700.25, stale_s=30, load_s=0.5)
    entry = parse(raw)
    assert entry is not None
    assert (entry.fresh_until_s, entry.stale_s, entry.load_s) == (1700.25, 30, 0.5)
    assert unpack(entry, Json()) == {"a": 1}
    assert raw == entry.mark + entry.payload
    assert pack(1, Json(), fresh_until_s=0) != pack(1, Json(), fresh_until_s=0)


def test_what_looks_like_an_envelope_is_never_stored_plain() -> None:
    assert plain(b"keyheat:1:n") is plain("keyheat:") is plain(True) is plain(None) is None
    assert parse(b"anything else") is None


def test_a_stale_store_is_bounded_in_age_and_bytes() -> None:
    clock = WallClock()
    store = StaleStore(10, 1024, clock=clock)
    for number in range(10):
        store.put(b"%d" % number, b"x" * 100)
    kept = [number for number in range(10) if store.get(b"%d" % number)]
    assert kept == [8, 9]
    clock.now_s += 10.1
    assert store.get(b"9") is None
    store.put(b"9", b"x")
    store.forget(b"9")
    assert store.get(b"9") is None
