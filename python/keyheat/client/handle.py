"""`client.keyheat`: what an operator asks a protected client, and its switches."""

from typing import TYPE_CHECKING, Any

from keyheat._keyheat import Guard
from keyheat.client._engine import Binding, guard_for, loads
from keyheat.errors import ConfigError

if TYPE_CHECKING:
    from keyheat.mitigate.loading import Loader


class Handle:
    """The keyheat side of one protected client.

    Clients of one deployment share an engine, so what is said and switched here holds for all of them in
    this process.
    """

    __slots__ = ("_binding", "guard")

    def __init__(self, binding: Binding, guard: Guard) -> None:
        self._binding = binding
        self.guard = guard

    @classmethod
    def give(cls, client: Any, binding: Binding) -> "Handle":
        """Make the handle of a client, and give it to the client and its twin."""
        handle = cls(binding, guard_for(client, binding))
        both = (client, getattr(client, "_keyheat_twin", client))
        for each in both:
            each.keyheat = handle
            each._keyheat_guard = handle.guard
        if binding.routing:
            from keyheat.client.routes import routes_of  # noqa: PLC0415  only who asks for it

            routes = routes_of(client, handle.guard, binding)
            for each in both:
                each._keyheat_routes = routes
        return handle

    @property
    def binding(self) -> Binding:
        """The engine and what is beside it."""
        return self._binding

    def loader_of(self, client: Any) -> "Loader":
        """The loader behind the client's `get_or_load` and `cached`."""
        from keyheat.client.loaders import loader_of  # noqa: PLC0415  `protect` has imported it

        return loader_of(client, self._binding)

    def stats(self) -> dict[str, Any]:
        """What was counted since start, in this process.

        Returns:
            Counters (`commands`, `hot_reads`, `local_hits`, `joins`, `fills`, `lapsed`, …), sizes
            (`cached_entries`, `cached_bytes`, `hot_keys`), the staleness bound in force
            (`max_staleness_ms`), and `not_caching`: for each node without a tracking connection, why.
            Where a plan has them, `copies` and `replica_reads`: what those have done. With `node_breaker`,
            `breakers`: what each node's has seen.
        """
        stats: dict[str, Any] = loads(self._binding.engine.stats())
        if self._binding.routing:
            from keyheat.client.routes import figures  # noqa: PLC0415  only who asks for it

            stats |= figures(self._binding)
        return stats

    def hot_keys(self) -> list[dict[str, Any]]:
        """The hot keys, the hottest first, each as `explain` tells it."""
        keys: list[dict[str, Any]] = loads(self._binding.engine.hot())["keys"]
        return keys

    def explain(self, key: bytes | str | float) -> dict[str, Any]:
        """Whether a key is hot, by which rule, what is done about it, since when, and what that saved.

        Args:
            key: The key; text is taken as UTF-8.

        Returns:
            `is_hot`, and for a hot key `rule`, `plan`, `state`, `since_s`, its load (`reads_per_s`,
            `writes_per_s`, `bytes_per_s`, `share`), `local_hits` and `joins` (reads the server did not
            see). `not_caching` says why nothing can be kept, `may_read_locally` whether this client's
            reads may be answered from memory at all.
        """
        if isinstance(key, int | float) and not isinstance(key, bool):
            key = repr(key)  # as clients send numbers
        if not isinstance(key, str | bytes | bytearray | memoryview):
            raise ConfigError(f"explain: {type(key).__name__} is no key; accepted: str, bytes, a number")
        raw = key.encode() if isinstance(key, str) else bytes(key)
        told: dict[str, Any] = loads(self._binding.engine.explain(raw))
        told["key"] = raw
        told["may_read_locally"] = self.guard.may_read_locally
        return told

    def clear(self) -> None:
        """Drop every cached value."""
        self._binding.engine.clear()

    @property
    def local_cache(self) -> bool:
        """Whether hot keys are answered from memory; may be set while running."""
        return self._binding.engine.switch("local_cache")

    @local_cache.setter
    def local_cache(self, on: bool) -> None:
        self._binding.engine.set_switch("local_cache", on)

    @property
    def coalesce(self) -> bool:
        """Whether reads of a hot key under way are shared; may be set while running."""
        return self._binding.engine.switch("coalesce")

    @coalesce.setter
    def coalesce(self, on: bool) -> None:
        self._binding.engine.set_switch("coalesce", on)

    @property
    def copies(self) -> bool:
        """Whether reads go to copies where a plan says so; may be set while running."""
        return self._binding.engine.switch("copies")

    @copies.setter
    def copies(self, on: bool) -> None:
        self._binding.engine.set_switch("copies", on)

    @property
    def replica_reads(self) -> bool:
        """Whether reads go to replicas where a plan says so; may be set while running."""
        return self._binding.engine.switch("replica_reads")

    @replica_reads.setter
    def replica_reads(self, on: bool) -> None:
        self._binding.engine.set_switch("replica_reads", on)

    @property
    def node_breaker(self) -> bool:
        """Whether commands to a node that keeps failing end at once; may be set while running."""
        breakers = self._binding.breakers
        return breakers is not None and breakers.enabled

    @node_breaker.setter
    def node_breaker(self, on: bool) -> None:
        if self._binding.breakers is None:
            raise ConfigError("node_breaker: accepted only for a client that was protected with one")
        self._binding.breakers.enabled = on

    @property
    def counting(self) -> bool:
        """Whether accesses are counted; without, nothing new is found hot. May be set while running."""
        return self._binding.engine.switch("counting")

    @counting.setter
    def counting(self, on: bool) -> None:
        self._binding.engine.set_switch("counting", on)

    @property
    def shadow(self) -> bool:
        """Whether everything is measured and nothing applied; may be set while running."""
        return self._binding.engine.switch("shadow")

    @shadow.setter
    def shadow(self, on: bool) -> None:
        self._binding.engine.set_switch("shadow", on)
