"""What is the same in a protected client whether it blocks or not: whatever sends nothing itself."""

import weakref
from datetime import timedelta
from typing import Any

from keyheat._keyheat import Guard, Lead, slot
from keyheat.client.handle import Handle
from keyheat.client.pipelines import relieved_lock


class ProtectedClient:
    """Stands before the client's own class, behind `SyncClient` or `AioClient`."""

    keyheat: Handle
    _keyheat_guard: Guard | None = None
    _keyheat_loader: Any = None
    _keyheat_routes: Any = None
    _keyheat_own: type[Any]

    def cached(self, template: str, *, ttl: float | timedelta) -> Any:
        """A decorator that keeps a function's results under `template`, such as `"item:{id}"`.

        With an asyncio client the function is a coroutine function.

        Args:
            template: The key, filled from the function's arguments by name.
            ttl: Seconds, or a timedelta, for which a result is fresh.
        """
        return self.keyheat.loader_of(self).cached(template, ttl=ttl)

    def set_response_callback(self, command: Any, callback: Any) -> None:
        """As the client's own. What is decoded in another way from now on is kept apart."""
        super().set_response_callback(command, callback)  # type: ignore[misc]
        if self._keyheat_guard is not None:
            may_read_locally = self.keyheat.guard.may_read_locally
            handle = Handle.give(self, self.keyheat.binding)
            if not may_read_locally:
                handle.guard.switch_off()

    def pipeline(self, *args: Any, **options: Any) -> Any:
        """As the client's own."""
        pipeline = super().pipeline(*args, **options)  # type: ignore[misc]
        if self._keyheat_guard is not None:
            from keyheat.client.classes import pipeline_class  # noqa: PLC0415  knows this module

            pipeline.__class__ = pipeline_class(type(pipeline))
            pipeline._keyheat_guard = self._keyheat_guard
            pipeline._keyheat_routes = self._keyheat_routes
        return pipeline

    def lock(self, *args: Any, **options: Any) -> Any:
        """As the client's own; with `lock_relief`, a lock that stands in line."""
        make = super().lock  # type: ignore[misc]
        if self._keyheat_guard is None or self.keyheat.binding.relief is None:
            return make(*args, **options)
        return relieved_lock(self, make, args, options)

    def client(self) -> Any:
        """As the client's own: a client with one connection; protected as this one."""
        own = super().client()  # type: ignore[misc]
        if self._keyheat_guard is not None:
            Handle.give(own, self.keyheat.binding)
        return own


class ProtectedCluster:
    """What a protected Cluster client has besides."""

    keyheat: Handle
    nodes_manager: Any
    _keyheat_slots: Any = None

    def _keyheat_home(self, lead: Lead, options: dict[str, Any]) -> Any:
        """The node that tracks the key, if the client, too, takes it for the owner."""
        place = slot(lead.key)
        nodes = self.nodes_manager.slots_cache.get(place)
        if not nodes or "target_nodes" in options:
            lead.disown()
            return None
        if (str(nodes[0].host), int(nodes[0].port)) != lead.node:
            lead.disown()
            self.keyheat.binding.follow({place: nodes})
            return None
        return nodes[0] if lead.is_fill else None

    def _keyheat_follow(self, slots: Any) -> None:
        """The client's map of the Cluster is another than before."""
        self._keyheat_slots = slots
        self.keyheat.binding.follow(slots)


def filler(client: Any, own: type[Any], fill: type[Any], lead: Lead) -> Any:
    """The client, for the read that `lead` stands for.

    It is the client itself under another class, sharing its attributes, so that no other command pays for a
    question that only a fill asks.

    Args:
        client: A protected client.
        own: Its own class.
        fill: The class that stands before it for this read: `SyncFill` or `AioFill`.
        lead: The read.
    """
    filling = _double(client, own, fill)
    filling._keyheat_lead = lead
    return filling


class Bare:
    """A client as it was before it was protected. See `bare`."""

    __slots__ = ()

    def __del__(self) -> None:
        """Nothing: what the client owns is the client's to close."""


def bare(client: Any) -> Any:
    """A protected client as it was, for commands that are neither counted nor routed.

    It has what the client has now, but nothing of keyheat's: what it is used by belongs to the client, which
    is to be collected as soon as nobody holds it.
    """
    double = _double(client, client._keyheat_own, Bare)
    double.__dict__ = {
        name: value
        for name, value in double.__dict__.items()
        if name != "keyheat" and not name.startswith("_keyheat")
    }
    return double


def _shared(slot: str) -> Any:
    """An attribute that the client has in a slot, and its double therefore not."""

    def get(double: Any) -> Any:
        return getattr(double._keyheat_of(), slot)

    def put(double: Any, value: Any) -> None:
        setattr(double._keyheat_of(), slot, value)

    return property(get, put)


_doubles: dict[tuple[type[Any], type[Any]], type[Any]] = {}


def _double(client: Any, own: type[Any], before: type[Any]) -> Any:
    """The client under another class, sharing its attributes."""
    if (before, own) not in _doubles:
        slots = [name for base in own.__mro__ for name in base.__dict__.get("__slots__", ())]
        names: dict[str, Any] = {name: _shared(name) for name in slots}
        names |= {"__slots__": ("_keyheat_of", *before.__annotations__), "__module__": own.__module__}
        _doubles[before, own] = type(own.__name__, (before, own), names)
    double = object.__new__(_doubles[before, own])
    double._keyheat_of = weakref.ref(client)
    # A twin's dict, if there is one: to ask for the client's own is to have its attributes moved there.
    double.__dict__ = getattr(client, "_keyheat_twin", client).__dict__
    return double
