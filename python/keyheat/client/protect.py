"""`protect`: one line for an application."""

import importlib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

from keyheat.client._engine import bind
from keyheat.client.classes import client_class
from keyheat.client.family import Family, family_of
from keyheat.client.handle import Handle
from keyheat.client.settings import ClientSettings
from keyheat.client.sync import PoolOwner, connection_to
from keyheat.errors import ConfigError

ClientT = TypeVar("ClientT")


def protect(
    client: ClientT,
    *,
    rules: Sequence[Any] | None = None,
    plans: Mapping[str, Sequence[str]] | None = None,
    settings: ClientSettings | None = None,
    center: None = None,
    **options: Any,
) -> ClientT:
    """Protect a client: find the hot keys it uses, and answer them from memory within a bound.

    What is returned is an instance of the client's own class, with every method, pipeline and setting the
    client had, and `keyheat` beside them. Use it in place of what was given (which is protected as well,
    so that no path to the server is left out). Protecting it again changes nothing.

    Args:
        client: A client of redis-py or valkey-py: sync or asyncio, of one server, a Cluster, or one that
            Sentinel manages (`sentinel.master_for(…)`).
        rules: Which keys are hot, and what is done for them; as in a rules file. `None`: any key with at
            least 100 operations a second and 1 % of its node's, or 1 MiB a second and 5 % of its bytes.
        plans: What is done for the keys of a rule, by the rule's name, instead of the rule's own plan:
            `plans={"default": ["coalesce"]}` keeps nothing in memory. An empty list only watches. Besides
            there are `copies`, for a Cluster, and `replica_reads`.
        settings: Everything else, in one object.
        center: Where the hot set comes from; `None`, this process detects on its own. No other is
            known to this version.
        **options: Single settings of `ClientSettings`, which go before `settings`.

    Raises:
        ConfigError: `client` is no such client, or a setting is out of range.
    """
    if center is not None:
        raise ConfigError("center: accepted: None (this process detects on its own)")
    family = _family_of_protectable(client)
    if getattr(client, "_keyheat_guard", None) is not None:
        return client
    chosen = _chosen(settings, rules, plans, options)
    own: Any = client
    is_cluster = isinstance(own, (family.sync_cluster, family.aio_cluster))
    if is_cluster and chosen.every_key:
        raise ConfigError(
            "every_key: not for a Cluster, where heartbeats ask for every cached slot; accepted there: False"
        )
    if not is_cluster and "copies" in chosen.routing:
        raise ConfigError("plans: copies are for a Cluster; accepted for other clients: the other remedies")
    pool = ClusterPool(family, own) if is_cluster else own.connection_pool
    # Now, and not at the first miss: that is when a crowd is waiting.
    importlib.import_module("keyheat.client.loaders")
    # From here on nothing is refused: a client is protected, or as it was.
    binding = bind(family, own, pool, chosen, is_cluster=is_cluster)
    if hasattr(type(own), "_keyheat_own"):
        pass  # made by a protected class, as `client()` and `from_pool` do
    elif type(own) is family.sync and own.connection is None:
        own = _moved(client_class(family, type(own), binding), own)
    else:
        own.__class__ = client_class(family, type(own), binding)
        # In the old dict its values lie as the old class laid them out, and are found more slowly.
        own.__dict__ = dict(own.__dict__)
    handle = Handle.give(own, binding)
    binding.clients.add(own)
    if is_cluster:
        binding.follow(own.nodes_manager.slots_cache)
    if _own_cache(own) is not None or (not is_cluster and _reads_replicas(pool)):
        # What a replica or a cache of the client's own says may be older than any bound we could prove.
        handle.guard.switch_off()
    return cast("ClientT", own)


def _family_of_protectable(client: object) -> Family:
    family = family_of(client)
    if family is None or isinstance(client, family.pipelines):
        raise ConfigError(
            f"protect: {type(client).__name__} cannot be protected; accepted: a client of redis-py or "
            "valkey-py (Redis, redis.asyncio.Redis, RedisCluster, redis.asyncio.RedisCluster)"
        )
    return family


def _moved(protected: type[Any], client: Any) -> Any:
    """A new object with everything the client has, of the protected class.

    An object whose class is changed keeps its attributes in a dict from then on, where the interpreter
    finds them more slowly: 1.6 % of a GET. So the blocking client, the one that is fast enough for that to
    count, is made anew. What was given stays a protected client too. What they share is closed when neither
    is left.
    """
    client._keyheat_owner = PoolOwner(client)
    new = object.__new__(protected)
    for name, value in client.__dict__.items():
        setattr(new, name, value)
    client.__class__ = protected
    new._keyheat_twin = client
    return new


def _chosen(
    settings: ClientSettings | None,
    rules: Sequence[Any] | None,
    plans: Mapping[str, Sequence[str]] | None,
    options: dict[str, Any],
) -> ClientSettings:
    if settings is not None and not isinstance(settings, ClientSettings):
        raise ConfigError("settings: accepted: a ClientSettings, or None")
    known = {field.name for field in fields(ClientSettings)}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"protect: no setting {unknown[0]!r}; accepted: {', '.join(sorted(known))}")
    if rules is not None:
        options = options | {"rules": rules}
    if plans is not None:
        options = options | {"plans": plans}
    return replace(settings or ClientSettings(), **options)


def _own_cache(client: Any) -> Any:
    holders = (getattr(client, "connection_pool", None), getattr(client, "nodes_manager", None))
    found = (getattr(holder, name, None) for holder in holders for name in ("cache", "_cache"))
    return next((cache for cache in found if cache is not None), None)


def _reads_replicas(pool: Any) -> bool:
    return getattr(pool, "sentinel_manager", None) is not None and not pool.is_master


class ClusterPool:
    """What a dialer asks of a pool, for a Cluster client: looked up when a connection is opened.

    Until it has talked to the Cluster, a client may not know a single node.
    """

    def __init__(self, family: Family, client: Any) -> None:
        self._family = family
        self._client = weakref.ref(client)
        self._is_asyncio = isinstance(client, family.aio_cluster)

    @property
    def connection_kwargs(self) -> dict[str, Any]:
        """The settings of its connections."""
        client = self._client()
        if client is None:
            raise ReferenceError("the client is gone")
        if self._is_asyncio:
            return {
                name: value for name, value in client.connection_kwargs.items() if name != "connection_class"
            }
        nodes = list(client.nodes_manager.nodes_cache.values())
        for node in nodes:
            pool = getattr(connection_to(client, node), "connection_pool", None)
            if pool is not None:
                kwargs: dict[str, Any] = pool.connection_kwargs
                return kwargs
        return dict(getattr(client.nodes_manager, "connection_kwargs", None) or {})

    @property
    def connection_class(self) -> type[Any]:
        """The class of its connections."""
        client = self._client()
        module = (
            f"{self._family.name}.asyncio.connection"
            if self._is_asyncio
            else f"{self._family.name}.connection"
        )
        default: type[Any] = importlib.import_module(module).Connection
        if client is None:
            return default
        if self._is_asyncio:
            return client.connection_kwargs.get("connection_class", default)  # type: ignore[no-any-return]
        for node in list(client.nodes_manager.nodes_cache.values()):
            pool = getattr(connection_to(client, node), "connection_pool", None)
            if pool is not None:
                return pool.connection_class  # type: ignore[no-any-return]
        return default
