"""A pytest plugin, run inside redis-py's tests: every client they make is wrapped as it is made.

The constructors of the four client classes are replaced by ones that wrap the finished client. So are
clients that redis-py makes for an application: `client()`, `from_url()`, those of a Sentinel. Two kinds are
left alone: pipelines, which are made from a client and not by an application, and the clients a
RedisCluster keeps for its nodes, of which an application wraps the RedisCluster.

What wrapping is, is in `wrapper()` alone:

- `protect` is `keyheat.protect` with rules that make every key hot at its first read.
- `repeat` is that, with every plain read asked three times, so that they really are answered from memory.
- `subclass` swaps the class for an empty subclass that counts commands. It is the control: a test that
  fails under it objects to the swap itself, whatever keyheat does.
"""

import asyncio
import functools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.cluster

# Every key is hot from its first read on, and is answered from memory from then on.
_HOT_FROM_THE_FIRST_READ = [
    {
        "name": "all",
        "match": {"any": True},
        "levels": [{"metric": "reads", "enter_per_s": 0.001}],
        "min_hot_ms": 600_000,
        "plan": ["local_cache"],
    }
]
RULES: list[dict[str, Any]] = json.loads(
    os.environ.get("KEYHEAT_COMPAT_RULES") or json.dumps(_HOT_FROM_THE_FIRST_READ)
)

_CLIENTS: tuple[type, ...] = (
    redis.Redis,
    redis.cluster.RedisCluster,
    redis.asyncio.Redis,
    redis.asyncio.cluster.RedisCluster,
)
_CLUSTERS = (redis.cluster.RedisCluster, redis.asyncio.cluster.RedisCluster)
_PIPELINES: tuple[type, ...] = (
    redis.client.Pipeline,
    redis.cluster.ClusterPipeline,
    redis.asyncio.client.Pipeline,
    redis.asyncio.cluster.ClusterPipeline,
)


class Wrapper(Protocol):
    """One way to wrap a client."""

    def wrap(self, client: Any) -> None:
        """Wrap a finished client in place; a client that is wrapped already stays as it is."""

    def totals(self) -> dict[str, int]:
        """What the wrapped clients did: `commands` and, if anything is cached, `local_hits`."""


class Protect:
    """`keyheat.protect`, as in an application that lives longer than one test.

    Clients of one deployment share an engine, which lives as long as one of them. Here it lives to the end
    of the run, or it would be gone with each test before its tracking connection is open, and nothing would
    ever be answered from memory.
    """

    rules: ClassVar = RULES

    def __init__(self) -> None:
        import keyheat  # noqa: PLC0415 - the control run does without

        self._protect = keyheat.protect
        self._bindings: dict[int, Any] = {}

    def wrap(self, client: Any) -> None:
        # What it returns may be another object; the one that the test holds is protected as well.
        is_cluster = isinstance(client, _CLUSTERS)
        self._protect(client, rules=RULES if is_cluster else self.rules, every_key=not is_cluster)
        binding = client.keyheat.binding
        self._bindings[id(binding)] = binding

    def totals(self) -> dict[str, int]:
        counts = Counter(engines=len(self._bindings))
        for binding in self._bindings.values():
            stats: dict[str, Any] = json.loads(binding.engine.stats())
            counts.update({name: count for name, count in stats.items() if type(count) is int})
        return dict(counts)


class Repeat(Protect):
    """As `Protect`, and every plain read is asked three times: the third is usually answered from memory.

    Their tests read a value once or twice after a write, which is never enough to be kept. Each answer has
    to be the same, in value and in type; the test gets the last. Each engine has one client more than the
    tests make, which is never closed: tracking connections are not opened anew for each test.
    """

    READS = frozenset({
        b"GET", b"STRLEN", b"GETRANGE", b"GETBIT", b"BITCOUNT", b"HGET", b"HGETALL", b"HKEYS", b"HVALS",
        b"HLEN", b"HEXISTS", b"HMGET", b"LRANGE", b"LINDEX", b"LLEN", b"SMEMBERS", b"SCARD", b"SISMEMBER",
        b"ZRANGE", b"ZSCORE", b"ZCARD", b"ZCOUNT", b"ZRANK", b"XRANGE", b"XLEN", b"TYPE", b"EXISTS",
    })  # fmt: skip
    PAUSE_S = 0.003
    # A rule would find that a key of theirs is written as often as it is read, and have none of it kept.
    rules: ClassVar = [RULES[0] | {"match": {"exact": "no key is called so"}}]

    def wrap(self, client: Any) -> None:
        super().wrap(client)
        client.keyheat.binding.clients.add(self)
        if isinstance(client, _PIPELINES) or "execute_command" in client.__dict__:
            return
        is_async = isinstance(client, (redis.asyncio.Redis, redis.asyncio.cluster.RedisCluster))
        client.execute_command = self._async(client) if is_async else self._sync(client)

    def _is_read(self, args: tuple[Any, ...]) -> bool:
        name = args[0] if args else b""
        return (name.encode() if isinstance(name, str) else bytes(name)).upper() in self.READS

    @staticmethod
    def _same(first: Any, again: Any) -> Any:
        assert type(first) is type(again), (first, again)
        assert first == again or repr(first) == repr(again), (first, again)  # NaN is not itself
        return again

    def _sync(self, client: Any) -> Any:
        ask = type(client).execute_command

        def execute_command(*args: Any, **options: Any) -> Any:
            reply = ask(client, *args, **options)
            if self._is_read(args):
                for _ in range(2):
                    time.sleep(self.PAUSE_S)
                    reply = self._same(reply, ask(client, *args, **options))
            return reply

        return execute_command

    def _async(self, client: Any) -> Any:
        ask = type(client).execute_command

        async def execute_command(*args: Any, **options: Any) -> Any:
            reply = await ask(client, *args, **options)
            if self._is_read(args):
                for _ in range(2):
                    await asyncio.sleep(self.PAUSE_S)
                    reply = self._same(reply, await ask(client, *args, **options))
            return reply

        return execute_command


class Subclass:
    """The control: another class, the same behaviour."""

    def __init__(self) -> None:
        self._classes: dict[type, type] = {}
        self._counts: Counter[str] = Counter()

    def wrap(self, client: Any) -> None:
        cls = type(client)
        if cls not in self._classes.values():
            client.__class__ = self._classes.get(cls) or self._classes.setdefault(cls, self._subclass(cls))

    def totals(self) -> dict[str, int]:
        return dict(self._counts)

    def _subclass(self, cls: Any) -> type:
        counts = self._counts

        @functools.wraps(cls.execute_command)
        def execute_command(client: Any, *args: object, **options: object) -> Any:
            counts["commands"] += 1
            return cls.execute_command(client, *args, **options)

        return type(cls.__name__, (cls,), {"__module__": cls.__module__, "execute_command": execute_command})


def wrapper(name: str) -> Wrapper:
    """The wrapper of that name."""
    kinds: dict[str, Callable[[], Wrapper]] = {"protect": Protect, "repeat": Repeat, "subclass": Subclass}
    return kinds[name]()


class Plugin:
    """Wraps every client made while it is installed."""

    def __init__(self, how: Wrapper) -> None:
        self._how = how
        self._clients: Counter[str] = Counter()
        self._inside = threading.local()  # a RedisCluster makes the client of a node, in this thread

    def install(self) -> None:
        """Replace the constructors, before the tests are imported."""
        for cls in _CLIENTS:
            cls.__init__ = self._wrapping(cls.__init__, f"{cls.__module__}.{cls.__name__}")  # type: ignore[misc]
        manager = redis.cluster.NodesManager
        manager.create_redis_node = self._unwrapped(manager.create_redis_node)  # type: ignore[method-assign]

    def totals(self) -> dict[str, int]:
        """What is reported at the end."""
        return {"clients": self._clients.total(), **self._clients, **self._how.totals()}

    def _wrapping(self, init: Callable[..., None], name: str) -> Callable[..., None]:
        @functools.wraps(init)
        def wrapping(client: Any, *args: object, **options: object) -> None:
            init(client, *args, **options)
            if isinstance(client, _PIPELINES) or getattr(self._inside, "node", False):
                return
            self._clients[name] += 1
            self._how.wrap(client)

        return wrapping

    def _unwrapped(self, make: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(make)
        def unwrapped(*args: object, **options: object) -> Any:
            self._inside.node = True
            try:
                return make(*args, **options)
            finally:
                self._inside.node = False

        return unwrapped

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand the totals to the runner."""
        record: Any = session.config.pluginmanager.get_plugin("keyheat_compat_record")
        record.write("wrapped", totals=self.totals())

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what the wrapping did."""
        terminalreporter.section("keyheat")
        for name, count in self.totals().items():
            terminalreporter.line(f"{name}: {count}")


def pytest_configure(config: pytest.Config) -> None:
    """Install the wrapper that the runner asked for."""
    if name := os.environ.get("KEYHEAT_COMPAT_WRAP"):
        plugin = Plugin(wrapper(name))
        plugin.install()
        config.pluginmanager.register(plugin, "keyheat-compat-wrapping")
