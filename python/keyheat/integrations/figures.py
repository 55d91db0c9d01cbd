"""The figures of a protected client: the one table that OpenTelemetry and Prometheus both read.

Names follow OpenTelemetry's conventions; Prometheus' are made of them (`keyheat.client.cache.bytes` becomes
`keyheat_client_cache_bytes`). Adding a counter to the engine? Add a line here.

One engine serves all clients of a deployment in a process, so its figures are those of all of them, and it
is counted once however many of its clients are given. It is held weakly: with the last client it is gone
from the figures. Engines whose labels are the same (one server, two sets of settings) are added up.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from keyheat.client import Handle
from keyheat.client._engine import Binding, loads
from keyheat.client.protect import ClusterPool
from keyheat.errors import ConfigError
from keyheat.integrations.redaction import Redact, shown

Labels = tuple[tuple[str, str], ...]
Point = tuple[Labels, float]

_S_PER_MS = 1e-3
_S_PER_NS = 1e-9


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure.

    Attributes:
        name: OpenTelemetry's name.
        source: Its name in `Handle.stats()`, or in `Handle.hot_keys()` for that of a key.
        kind: A counter only grows; a gauge is what is so now.
        unit: As OpenTelemetry writes it (UCUM).
        help: A sentence for whoever looks at it.
        scale: What the source's figure is multiplied by.
        merge: What two engines with the same labels make.
    """

    name: str
    source: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    scale: float = 1.0
    merge: Literal["sum", "max"] = "sum"

    @property
    def prometheus_name(self) -> str:
        """The name for Prometheus, without the `_total` of counters."""
        name = self.name.replace(".", "_")
        of, slash, _ = self.unit.partition("/")
        suffix = {"By": "_bytes", "s": "_seconds"}.get(of, "")
        if not name.endswith(suffix):
            name += suffix
        return name + "_per_second" if slash else name


FIGURES: tuple[Figure, ...] = (
    Figure(
        "keyheat.client.commands", "commands", "counter", "{command}", "Commands not answered from memory."
    ),
    Figure("keyheat.client.hot_reads", "hot_reads", "counter", "{read}", "Cacheable reads of hot keys."),
    Figure("keyheat.client.local_hits", "local_hits", "counter", "{read}", "Of these, answered from memory."),
    Figure(
        "keyheat.client.shadow_hits",
        "shadow_hits",
        "counter",
        "{read}",
        "Reads that would have been answered from memory, in shadow mode.",
    ),
    Figure(
        "keyheat.client.joins", "joins", "counter", "{read}", "Reads that another caller's read answered."
    ),
    Figure("keyheat.client.fills", "fills", "counter", "{read}", "Reads whose value was stored."),
    Figure(
        "keyheat.client.fills_refused",
        "fills_refused",
        "counter",
        "{read}",
        "Reads whose value came too late or did not fit.",
    ),
    Figure(
        "keyheat.client.lapsed",
        "lapsed",
        "counter",
        "{read}",
        "Reads with a value at hand that was not proved fresh.",
    ),
    Figure(
        "keyheat.client.registrations", "registrations", "counter", "{key}", "Keys registered for tracking."
    ),
    Figure(
        "keyheat.client.invalidations", "invalidations", "counter", "{message}", "Invalidations received."
    ),
    Figure("keyheat.client.heartbeats", "heartbeats", "counter", "{heartbeat}", "Heartbeats sent."),
    Figure(
        "keyheat.client.heartbeat.interval",
        "heartbeat_ms",
        "gauge",
        "s",
        "Time between two heartbeats of a tracking connection.",
        scale=_S_PER_MS,
        merge="max",
    ),
    Figure(
        "keyheat.client.tracking.opened",
        "tracking_opened",
        "counter",
        "{connection}",
        "Tracking connections opened.",
    ),
    Figure(
        "keyheat.client.tracking.lost",
        "tracking_lost",
        "counter",
        "{connection}",
        "Tracking connections lost.",
    ),
    Figure(
        "keyheat.client.tracking.refused",
        "not_caching",
        "gauge",
        "{node}",
        "Nodes that cannot be tracked, so that nothing of theirs is kept.",
    ),
    Figure("keyheat.client.became_hot", "became_hot", "counter", "{key}", "Keys that became hot."),
    Figure("keyheat.client.hot_keys", "hot_keys", "gauge", "{key}", "Keys that are hot now."),
    Figure(
        "keyheat.client.cache.entries", "cached_entries", "gauge", "{entry}", "Replies in the local cache."
    ),
    Figure("keyheat.client.cache.bytes", "cached_bytes", "gauge", "By", "Memory of the local cache."),
    Figure(
        "keyheat.client.cached.time",
        "cached_ns",
        "counter",
        "s",
        "Time in which something was cached.",
        scale=_S_PER_NS,
    ),
    Figure(
        "keyheat.client.unproved.time",
        "unproved_ns",
        "counter",
        "s",
        "Of the time in which something was cached, that without a live proof of freshness.",
        scale=_S_PER_NS,
    ),
    Figure(
        "keyheat.client.staleness.bound",
        "max_staleness_ms",
        "gauge",
        "s",
        "How old a value read from memory may be.",
        scale=_S_PER_MS,
        merge="max",
    ),
    Figure(
        "keyheat.client.proof.age",
        "proof_age_ms",
        "gauge",
        "s",
        "Age of the proof of freshness, the oldest of the nodes with a hot key.",
        scale=_S_PER_MS,
        merge="max",
    ),
)

# Of single keys, and so only on request.
KEY_FIGURES: tuple[Figure, ...] = (
    Figure("keyheat.client.key.reads", "reads_per_s", "gauge", "{read}/s", "Reads of the key per second."),
    Figure(
        "keyheat.client.key.writes", "writes_per_s", "gauge", "{write}/s", "Writes of the key per second."
    ),
    Figure("keyheat.client.key.traffic", "bytes_per_s", "gauge", "By/s", "Bytes of the key per second."),
    Figure("keyheat.client.key.share", "share", "gauge", "1", "Share of the key in its node's operations."),
)
KEY_LABEL = "keyheat.key"

_MERGE: dict[str, Callable[[float, float], float]] = {"sum": lambda a, b: a + b, "max": max}


class Figures:
    """The figures of some protected clients.

    Args:
        keys: How many of the hottest keys are shown one by one; 0 for none.
        redact: How they are shown.

    Raises:
        ConfigError: `keys` is below 0.
    """

    def __init__(self, *, keys: int = 0, redact: Redact | None = None) -> None:
        if type(keys) is not int or keys < 0:
            raise ConfigError("keys: accepted: an integer, 0 or more")
        self.keys = keys
        self._redact = redact or shown
        self._engines: weakref.WeakKeyDictionary[Binding, Labels] = weakref.WeakKeyDictionary()

    def add(self, client: Any) -> None:
        """Have a client's engine in the figures.

        Args:
            client: A protected client, or its `Handle`.

        Raises:
            ConfigError: It is neither.
        """
        binding = handle_of(client).binding
        if binding not in self._engines:
            self._engines[binding] = _labels_of(client, binding)

    def read(self) -> dict[Figure, list[Point]]:
        """All figures now, each with its labels; those of keys too, if any are to be shown."""
        found: dict[Figure, dict[Labels, float]] = {}
        for binding, labels in list(self._engines.items()):
            for figure, extra, value in self._of(binding):
                points = found.setdefault(figure, {})
                at = (*labels, *extra)
                points[at] = _MERGE[figure.merge](points[at], value) if at in points else value
        return {figure: list(points.items()) for figure, points in found.items()}

    def shown(self) -> tuple[Figure, ...]:
        """The figures there can be."""
        return FIGURES + (KEY_FIGURES if self.keys else ())

    def _of(self, binding: Binding) -> Iterator[tuple[Figure, Labels, float]]:
        stats = loads(binding.engine.stats())
        keys = loads(binding.engine.hot())["keys"]
        stats["proof_age_ms"] = _proof_age_ms(binding, keys)
        stats["not_caching"] = len(stats["not_caching"])
        for figure in FIGURES:
            value = stats.get(figure.source)
            if value is not None:
                yield figure, (), value * figure.scale
        for key in keys[: self.keys]:
            label = ((KEY_LABEL, self._redact(key["key"])),)
            for figure in KEY_FIGURES:
                yield figure, label, key[figure.source] * figure.scale


def handle_of(client: Any) -> Handle:
    """The keyheat side of a client.

    Args:
        client: A protected client, something that has one (a `KeyheatCache`), or a `Handle`.

    Raises:
        ConfigError: It is none of these.
    """
    handle = client if isinstance(client, Handle) else getattr(client, "keyheat", None)
    if not isinstance(handle, Handle):
        raise ConfigError(
            f"{type(client).__name__} is not protected; accepted: what keyheat.protect() returned, or its "
            "keyheat attribute"
        )
    return handle


def _labels_of(client: Any, binding: Binding) -> Labels:
    """Which deployment an engine belongs to, in the words of OpenTelemetry's database conventions."""
    address, port, database = _place_of(client, binding)
    labels: tuple[tuple[str, object], ...] = (
        ("db.system.name", "redis"),
        ("server.address", address),
        ("server.port", port),
        ("db.namespace", database),
    )
    return tuple((name, str(value)) for name, value in labels if value is not None)


def _place_of(client: Any, binding: Binding) -> tuple[object, object, object]:
    """Address, port and database; of a Cluster those of its first node by name, the same in every process."""
    nodes = getattr(getattr(client, "nodes_manager", None), "startup_nodes", None)
    if nodes:
        first = nodes[min(nodes)]
        return first.host, first.port, 0
    pool = binding.pool
    if isinstance(pool, ClusterPool):  # a handle was given, which knows no nodes
        return "cluster", None, 0
    kwargs = pool.connection_kwargs
    database = kwargs.get("db") or 0
    if service := getattr(pool, "service_name", None):
        return service, None, database
    if path := kwargs.get("path"):
        return path, None, database
    return kwargs.get("host") or "localhost", kwargs.get("port") or 6379, database


def _proof_age_ms(binding: Binding, keys: list[dict[str, Any]]) -> float | None:
    one_of_each_node = {key["node"]: key["key"] for key in keys}
    ages = [
        loads(binding.engine.explain(key))["proof_age_ms"] for key in (one_of_each_node or {0: b""}).values()
    ]
    return max((age for age in ages if age is not None), default=None)
