"""What is the same for sync and asyncio: which engine a client shares, and what makes its replies its own.

One process has one engine per deployment and settings, however many clients it makes: they share its
tracking connections, its counts and its memory. What one client's settings change in a decoded reply is
part of the name under which the reply is kept.
"""

import atexit
import json
import os
import threading
import weakref
from typing import Any, Final

from keyheat._keyheat import Engine, Guard
from keyheat.client import tls
from keyheat.client.dial import dialer
from keyheat.client.family import Family
from keyheat.client.settings import ClientSettings
from keyheat.errors import ConfigError

# How long an interpreter that exits waits for the engine's thread.
_STOP_S: Final = 3.0


class Binding:
    """An engine with what Python keeps beside it; shared by the clients of one deployment."""

    def __init__(self, engine: Engine, settings: ClientSettings, pool: Any) -> None:
        self.engine = engine
        self.settings = settings
        self.coalesce_wait_s = settings.coalesce_wait_s
        # The engine's dialer reads this pool's settings for as long as it lives.
        self.pool = pool
        self.relief: Any = None
        if settings.lock_relief:
            from keyheat.mitigate.lock_relief import LockRelief  # noqa: PLC0415  only who asks for it

            self.relief = LockRelief()
        # The clients that use it and have not been closed.
        self.clients: weakref.WeakSet[Any] = weakref.WeakSet()
        # Where reads may go by plan, and what of each client decides it (`routes.py`).
        self.routing = settings.routing
        # Replaced as a whole: it is gone through while another thread makes a client.
        self.routes: tuple[weakref.ref[Any], ...] = ()
        self.known: dict[bytes, Any] = {}
        self.breakers: Any = None
        if settings.node_breaker is not None:
            from keyheat.client.breakers import NodeBreakers  # noqa: PLC0415  only who asks for it

            self.breakers = NodeBreakers(settings.node_breaker)
        # What tells replies apart is told by its identity, which must not be used again.
        self.callbacks: dict[int, Any] = {}
        weakref.finalize(self, engine.stop, 0.0)

    def add_routes(self, routes: Any) -> None:
        """A client of this deployment has routes."""
        with _lock:
            alive = (each for each in self.routes if each() is not None)
            self.routes = (*alive, weakref.ref(routes))

    def closed(self, client: Any) -> None:
        """A client was closed. With the last of them the engine closes its connections too."""
        self.clients.discard(client)
        if not self.clients:
            self.engine.rest()

    def follow(self, slots: dict[int, list[Any]]) -> None:
        """Take over who owns which slot.

        Args:
            slots: The client's map from slot to nodes, the primary first.
        """
        runs: list[tuple[int, int, str, int]] = []
        for slot in sorted(slots):
            nodes = slots[slot]
            if not nodes:
                continue
            host, port = str(nodes[0].host), int(nodes[0].port)
            if runs and runs[-1][1] == slot - 1 and runs[-1][2:] == (host, port):
                runs[-1] = (runs[-1][0], slot, host, port)
            else:
                runs.append((slot, slot, host, port))
        if runs:
            self.engine.set_owners(runs)


_bindings: "weakref.WeakValueDictionary[tuple[Any, ...], Binding]" = weakref.WeakValueDictionary()
_lock = threading.Lock()


def bind(family: Family, client: Any, pool: Any, settings: ClientSettings, *, is_cluster: bool) -> Binding:
    """The engine for a client, shared with others of the same deployment.

    Args:
        family: The client's library.
        client: The client.
        pool: A connection pool of it; for a Cluster of any node, or something with its settings.
        settings: The settings; clients share an engine only if theirs are the same.
        is_cluster: Whether it is a Cluster client.
    """
    where = _deployment(client, pool, is_cluster=is_cluster)
    # What is not the engine's must not keep two clients from sharing one, unless it differs.
    rest = (
        settings.lock_relief,
        settings.local_cache,
        settings.coalesce,
        settings.shadow,
        settings.coalesce_wait_s,
    )
    # Settings are told apart by what they say; an allowlist changes while it is used.
    objects = (settings.loading, settings.lease, settings.breaker, settings.node_breaker)
    routing = (settings.copies, settings.replica_reads, id(settings.allowlist))
    name = (family.name, is_cluster, where, settings.to_json(), rest, objects, routing)
    with _lock:
        binding = _bindings.get(name)
        if binding is None:
            engine = _started(settings, dialer(family, pool, is_cluster=is_cluster), is_cluster=is_cluster)
            binding = Binding(engine, settings, pool)
            _bindings[name] = binding
        return binding


def _started(settings: ClientSettings, dial: Any, *, is_cluster: bool) -> Engine:
    try:
        engine = Engine(settings.to_json(), dial, is_cluster)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name in ("local_cache", "coalesce", "shadow"):
        engine.set_switch(name, getattr(settings, name))
    return engine


def _deployment(client: Any, pool: Any, *, is_cluster: bool) -> tuple[Any, ...]:
    kwargs = pool.connection_kwargs or {}
    # What one client must not believe it must not be told through another that does.
    who = (
        kwargs.get("username"),
        kwargs.get("password"),
        id(kwargs.get("credential_provider")),
        tls.identity(pool),
    )
    sentinel = getattr(pool, "sentinel_manager", None)
    if sentinel is not None:
        nodes = tuple(
            sorted((str(kw.get("host")), kw.get("port")) for kw in map(_kwargs_of, sentinel.sentinels))
        )
        return ("sentinel", nodes, pool.service_name, bool(pool.is_master), kwargs.get("db", 0), who)
    if is_cluster:
        startup = client.nodes_manager.startup_nodes
        return ("cluster", tuple(sorted(startup)), who)
    where = (kwargs.get("host"), kwargs.get("port"), kwargs.get("path"))
    return ("one", where, kwargs.get("db", 0), who)


def _kwargs_of(sentinel: Any) -> dict[str, Any]:
    # Whatever stands in for a Sentinel's client, protecting must not fail by it.
    pool = getattr(sentinel, "connection_pool", None)
    kwargs: dict[str, Any] = getattr(pool, "connection_kwargs", None) or {"host": id(sentinel), "port": 0}
    return kwargs


def guard_for(client: Any, binding: Binding) -> Guard:
    """The native half of one protected client.

    Args:
        client: The client, for its encoder and what else changes its decoded replies.
        binding: Its engine.
    """
    encoder = client.get_encoder()
    kwargs = getattr(client, "connection_pool", None)
    options = kwargs.connection_kwargs if kwargs is not None else client.__dict__.get("connection_kwargs", {})
    own_callbacks = getattr(client, "response_callbacks", None)
    cluster_callbacks = getattr(client, "cluster_response_callbacks", None)
    shape = (
        type(client)._keyheat_own,
        encoder.decode_responses,
        encoder.encoding,
        encoder.encoding_errors,
        options.get("protocol"),
        options.get("legacy_responses"),
        id(options.get("parser_class")),
        _signature(binding, own_callbacks, cluster_callbacks),
    )
    is_utf8 = encoder.encoding.lower().replace("_", "-") in {"utf-8", "utf8"}
    own = type(client)._keyheat_own
    return Guard(binding.engine, hash(shape) & (2**64 - 1), encoder.encode, is_utf8, own)


def _signature(binding: Binding, *tables: Any) -> int:
    """A number that two clients share only if their replies are decoded by the same functions.

    The standard callbacks are the same objects in every client.
    """
    callbacks = [callback for table in tables if table for callback in dict(table).items()]
    signature = hash(tuple(sorted((str(name), id(callback)) for name, callback in callbacks)))
    binding.callbacks.setdefault(signature, callbacks)
    return signature


def loads(text: str) -> Any:
    """What the engine tells, keys as bytes."""
    return json.loads(text, object_hook=_with_bytes)


def _with_bytes(found: dict[str, Any]) -> dict[str, Any]:
    if isinstance(found.get("key"), list):
        found["key"] = bytes(found["key"])
    return found


def _start_anew() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_start_anew)


@atexit.register
def _stop_all() -> None:
    for binding in list(_bindings.values()):
        binding.engine.stop(_STOP_S)
