"""Clients of both kinds, called alike: what one parity suite over sync and asyncio needs.

An asyncio client lives in an event loop on a thread of its own; a test calls it as if it blocked.
"""

import asyncio
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

from keyheat.client import protect

# Hot at once: the tests are about what is done for a hot key, not about what is hot.
RULES = [{"name": "all", "match": {"any": True}, "levels": [{"metric": "ops", "enter_per_s": 5}]}]
CALL_TIMEOUT_S = 60.0
KINDS = ("sync", "aio")

# What a call may return that goes on talking to the server.
_TALKERS = ("Pipeline", "PubSub", "Lock", "Script", "Monitor", "Redis")


class Loop:
    """An event loop that runs on its own thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run it there and wait."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(CALL_TIMEOUT_S)

    def close(self) -> None:
        """Cancel what runs, and end the thread."""
        self.run(self._cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self.loop.close()

    async def _cancel(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class OnLoop:
    """An asyncio object whose methods are called as if they blocked."""

    def __init__(self, loop: Loop, target: Any) -> None:
        self._loop = loop
        self.target = target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.target, name)
        return self._blocking(found) if callable(found) else found

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._blocking(self.target)(*args, **options)

    def _blocking(self, function: Any) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            args = tuple(raw(arg) for arg in args)
            options = {name: raw(value) for name, value in options.items()}

            async def run() -> Any:
                result = function(*args, **options)
                if inspect.isasyncgen(result):
                    return [item async for item in result]
                # A pipeline can be awaited too; a Cluster's then forgets what waits in it.
                is_pipeline = "Pipeline" in type(result).__name__
                return await result if inspect.isawaitable(result) and not is_pipeline else result

            result = self._loop.run(run())
            is_talker = any(name in type(result).__name__ for name in _TALKERS)
            return OnLoop(self._loop, result) if is_talker else result

        return call


def raw(client: Any) -> Any:
    """The client itself."""
    return client.target if isinstance(client, OnLoop) else client


_numbers = itertools.count(1_000)


class Side:
    """One kind of client: makes them, and closes them in the end."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        # Clients share an engine where their settings are the same. So those of one test do, and
        # nothing that another test taught an engine is known here.
        self.settings: dict[str, Any] = {"rules": RULES, "hot_keys_max": next(_numbers)}
        self._loop: Loop | None = None
        self._clients: list[Any] = []

    def __repr__(self) -> str:
        return self.kind

    @property
    def is_aio(self) -> bool:
        """Whether its clients are asyncio's."""
        return self.kind == "aio"

    @property
    def loop(self) -> Loop:
        """The event loop of its clients."""
        if self._loop is None:
            self._loop = Loop()
        return self._loop

    def wrap(self, client: Any) -> Any:
        """A client made elsewhere, to be called and closed as the others."""
        self._clients.append(client)
        return OnLoop(self.loop, client) if self.is_aio else client

    def plain(self, address: str, **options: Any) -> Any:
        """A client without protection."""
        host, port = address.rsplit(":", 1)
        made: type[Any] = redis.asyncio.Redis if self.is_aio else redis.Redis
        return self.wrap(made(host=host, port=int(port), **options))

    def protected(self, address: str, settings: dict[str, Any] | None = None, **options: Any) -> Any:
        """A protected client; `options` are the client's own."""
        return self.protect(self.plain(address, **options), **(settings or {}))

    def protect(self, client: Any, **settings: Any) -> Any:
        """Protect a client, by `RULES` unless said otherwise; what is returned is to be used from then on."""
        made = protect(raw(client), **{**self.settings, **settings})
        self._clients = [each for each in self._clients if each is not raw(client)]
        return self.wrap(made)

    def plain_cluster(self, address: str, **options: Any) -> Any:
        """A Cluster client without protection."""
        host, port = address.rsplit(":", 1)
        if not self.is_aio:
            return self.wrap(redis.RedisCluster(host=host, port=int(port), **options))

        async def make() -> Any:
            client = redis.asyncio.RedisCluster(host=host, port=int(port), **options)
            return await client.initialize()

        return self.wrap(self.loop.run(make()))

    def cluster(self, address: str, settings: dict[str, Any] | None = None, **options: Any) -> Any:
        """A protected Cluster client."""
        return self.protect(self.plain_cluster(address, **options), **(settings or {}))

    def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            if self.is_aio:
                self.loop.run(client.aclose())
            else:
                client.close()
        self._clients.clear()
        if self._loop is not None:
            self._loop.close()
            self._loop = None


@contextmanager
def side_of(kind: str) -> Iterator[Side]:
    """A side that is closed in the end."""
    side = Side(kind)
    try:
        yield side
    finally:
        side.close()


def until_local(client: Any, *reads: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Read until one round of `reads` is answered from memory altogether."""
    deadline = time.monotonic() + timeout_s
    while True:
        before = hits(client)
        for read in reads:
            read()
        if hits(client) - before >= len(reads):
            return
        assert time.monotonic() < deadline, f"not answered from memory: {client.keyheat.stats()}"


def hits(client: Any) -> int:
    """Reads answered from memory so far, by all clients of the engine."""
    return int(client.keyheat.stats()["local_hits"])


def is_local(client: Any, read: Callable[[], Any]) -> bool:
    """Whether one read is answered from memory."""
    before = hits(client)
    read()
    return hits(client) > before


def shape(value: Any) -> Any:
    """A value with the types of everything in it."""
    if isinstance(value, dict):
        return (dict, sorted((repr(shape(k)), repr(shape(v))) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return (type(value), [shape(item) for item in value])
    if isinstance(value, (set, frozenset)):
        return (type(value), sorted(map(repr, value)))
    return (type(value), value)


def threads_of_keyheat() -> int:
    """How many threads this process has that belong to an engine."""
    count = 0
    for path in Path("/proc/self/task").glob("*/comm"):
        try:
            count += path.read_text().startswith("keyheat-")
        except OSError:
            continue
    return count
