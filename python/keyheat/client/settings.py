"""What `protect` may be told, checked at once."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from keyheat.errors import ConfigError

if TYPE_CHECKING:
    from keyheat.detect.rules import Rule
    from keyheat.mitigate.allowlist import Allowlist
    from keyheat.mitigate.breaker import BreakerSettings
    from keyheat.mitigate.copies import CopiesSettings
    from keyheat.mitigate.lease import LeaseSettings
    from keyheat.mitigate.loading import LoadingSettings
    from keyheat.mitigate.replica_reads import ReplicaReadsSettings

MIB = 1 << 20
_INTEGER_MAX = 1 << 48
# Settings that are objects: the module and the name of their class.
_OBJECTS = (
    ("loading", "loading", "LoadingSettings"),
    ("lease", "lease", "LeaseSettings"),
    ("breaker", "breaker", "BreakerSettings"),
    ("node_breaker", "breaker", "BreakerSettings"),
    ("copies", "copies", "CopiesSettings"),
    ("replica_reads", "replica_reads", "ReplicaReadsSettings"),
    ("allowlist", "allowlist", "Allowlist"),
)


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How a protected client counts, decides and caches.

    Attributes:
        max_staleness: The bound on how old a value read from memory may be; zero switches the local
            cache off. `None` is 100 ms, which may widen where so many clients track one node that their
            heartbeats would take more than 2 % of it; one that is given never widens.
        cache_bytes: Memory of the local cache, what Python holds for the values included.
        cache_value_max_bytes: The largest value that is cached.
        cache_entries_max: Most replies in the local cache.
        window: Length of the sliding window in which accesses are counted.
        hot_keys_max: Most keys in the hot set.
        connect_timeout: How long opening a tracking connection may take.
        coalesce_wait: How long a caller waits for another's read under way before it reads itself.
        local_cache: Whether hot keys are answered from memory.
        coalesce: Whether reads of a hot key under way are shared.
        shadow: Measure everything, apply nothing.
        lock_relief: Whether `client.lock(…)` stands in line: one contender per process, and per host, asks
            the server at a time. Costs an uncontended lock about as much again; for locks that are hot.
        loading: How `get_or_load` and `cached` load, keep and refresh; `None` is the defaults.
        lease: Whether, and how, they bring the processes together, so that one loads.
        breaker: How they guard the cache node; `None` is no breaker.
        node_breaker: How every command is guarded against a node that keeps failing: it ends at once, with
            an error that is the library's `ConnectionError` too; `None` is no breaker.
        every_key: Treat every cacheable read as one of a hot key: the local cache without detection.
        nx_is_lock: Take a key that was set with `NX` for a lock, which is never cached nor coalesced.
        rules: Which keys are hot, and what is done for them; `None` is the default rule.
        plans: What is done for the keys of a rule instead of its own plan, by the rule's name (`default` is
            that of the default rule): of `local_cache`, `coalesce`, `copies` (for a Cluster) and
            `replica_reads`, those listed. Reads that the local cache does not answer go to copies, or to
            replicas; what it keeps comes from primaries.
        copies: How copies are made where a plan has them; `None` is the defaults.
        replica_reads: How replicas are read where a plan has it; `None` is the defaults.
        allowlist: Whose keys get a longer expiry when they are written; `None` is nobody's.
    """

    max_staleness: timedelta | float | None = None
    cache_bytes: int = 64 * MIB
    cache_value_max_bytes: int = MIB
    cache_entries_max: int = 65_536
    window: timedelta | float = 1.0
    hot_keys_max: int = 1_000
    connect_timeout: timedelta | float = 2.0
    coalesce_wait: timedelta | float = 0.050
    local_cache: bool = True
    coalesce: bool = True
    shadow: bool = False
    lock_relief: bool = False
    loading: "LoadingSettings | None" = None
    lease: "LeaseSettings | bool" = True
    breaker: "BreakerSettings | None" = None
    node_breaker: "BreakerSettings | None" = None
    every_key: bool = False
    nx_is_lock: bool = True
    rules: "Sequence[Rule | dict[str, Any]] | None" = None
    plans: Mapping[str, Sequence[str]] | None = None
    copies: "CopiesSettings | None" = None
    replica_reads: "ReplicaReadsSettings | None" = None
    allowlist: "Allowlist | None" = None

    def __post_init__(self) -> None:
        """Check what the engine would not name in Python's words.

        Raises:
            ConfigError: A setting is out of range; the message names it and what is accepted.
        """
        bound_s = 0.1 if self.max_staleness is None else seconds("max_staleness", self.max_staleness)
        if bound_s != 0 and not 0.005 <= bound_s <= 600:
            raise ConfigError("max_staleness: accepted: 0 (no local cache), or 5 ms to 10 min")
        self._check("window", self.window, 0.1, 600)
        self._check("connect_timeout", self.connect_timeout, 0.001, 600)
        self._check("coalesce_wait", self.coalesce_wait, 0, 60)
        for name in ("cache_bytes", "cache_value_max_bytes", "cache_entries_max", "hot_keys_max"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= _INTEGER_MAX:
                raise ConfigError(f"{name}: accepted: an integer above 0, at most 2**48")
        for name in ("local_cache", "coalesce", "shadow", "every_key", "nx_is_lock", "lock_relief"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name}: accepted: True or False")
        self._check_objects()

    def _check_objects(self) -> None:
        for name, module, kind in _OBJECTS:
            value = getattr(self, name)
            # What is imported nowhere cannot be what was given.
            known = getattr(sys.modules.get(f"keyheat.mitigate.{module}"), kind, None)
            is_switch = name == "lease" and type(value) is bool
            if value is not None and not is_switch and (known is None or not isinstance(value, known)):
                also = "True, False" if name == "lease" else "None"
                raise ConfigError(f"{name}: accepted: a keyheat.{kind}, or {also}")
        given: dict[str, Any] = {name: getattr(self, name) for name in ("lease", "plans", "rules")}
        if given["lease"] is None:
            raise ConfigError("lease: accepted: a keyheat.LeaseSettings, or True, False")
        if given["plans"] is not None and not _is_plans(given["plans"]):
            raise ConfigError("plans: accepted: a mapping from names of rules to lists of remedies")
        if given["rules"] is not None and not (_is_list(given["rules"]) and given["rules"]):
            raise ConfigError(
                "rules: accepted: a list of rules (keyheat.detect.rules.load_rules reads a file)"
            )

    def _check(self, name: str, span: timedelta | float, least_s: float, most_s: float) -> None:
        if not least_s <= seconds(name, span) <= most_s:
            raise ConfigError(f"{name}: accepted: {least_s:g} s to {most_s:g} s")

    @property
    def max_staleness_ms(self) -> int:
        """The bound in milliseconds."""
        if self.max_staleness is None:
            return 100
        return round(seconds("max_staleness", self.max_staleness) * 1_000)

    @property
    def coalesce_wait_s(self) -> float:
        """The wait in seconds."""
        return seconds("coalesce_wait", self.coalesce_wait)

    @cached_property
    def routing(self) -> frozenset[str]:
        """What else has a say in each command: `copies`, `replica_reads`, `allowlist`, `breaker`."""
        plans = {remedy for rule in self.rules_in_force or [] for remedy in rule.plan}
        routed = plans & {"copies", "replica_reads"}
        beside = {"allowlist": self.allowlist, "breaker": self.node_breaker}
        return frozenset(routed | {name for name, given in beside.items() if given is not None})

    @cached_property
    def rules_in_force(self) -> "list[Rule] | None":
        """The rules with their plans; `None` is the default rule with its own.

        Raises:
            ConfigError: A rule is refused, or a plan.
        """
        if self.rules is None and not self.plans:
            return None
        from keyheat.detect.rules import DEFAULT_RULE, checked_rules, with_plans  # noqa: PLC0415  imports pydantic

        given = [DEFAULT_RULE] if self.rules is None else checked_rules(self.rules)
        return with_plans(given, self.plans) if self.plans else given

    def to_json(self) -> str:
        """The engine's settings.

        Raises:
            ConfigError: A rule is refused.
        """
        rules = self.rules_in_force
        return json.dumps(
            {
                "max_staleness_ms": self.max_staleness_ms,
                "may_widen": self.max_staleness is None,
                "cache_bytes": self.cache_bytes,
                "cache_value_max_bytes": self.cache_value_max_bytes,
                "cache_entries_max": self.cache_entries_max,
                "every_key": self.every_key,
                "nx_is_lock": self.nx_is_lock,
                "rules": None if rules is None else [rule.to_json() for rule in rules],
                "window_ms": round(seconds("window", self.window) * 1_000),
                "hot_keys_max": self.hot_keys_max,
                "connect_timeout_ms": round(seconds("connect_timeout", self.connect_timeout) * 1_000),
            }
        )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_plans(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _is_list(plan) and all(isinstance(each, str) for each in plan)
        for name, plan in value.items()
    )


def seconds(name: str, span: timedelta | float) -> float:
    """A span of time in seconds.

    Raises:
        ConfigError: It is no span of time.
    """
    if isinstance(span, timedelta):
        return span.total_seconds()
    if type(span) in {int, float} and math.isfinite(span):
        return float(span)
    raise ConfigError(f"{name}: accepted: seconds as a number, or a timedelta")
