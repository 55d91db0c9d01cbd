"""Which replicas may answer, and how that is known; what sync and asyncio share, without I/O.

A poll asks a primary for `ROLE` at time t and then each of its replicas. A replica that reports an
offset at or past the primary's has applied every write acknowledged before t: it is *confirmed* for t.
At a read it may answer if it is confirmed for a moment at most `max_lag_ms` ago. Nothing else is
trusted: not a link that is up, not a lag in bytes, not the last answer of a replica that has fallen
silent. So one rule leaves out replicas that lag, load, are down, or follow somebody else.

The same rule gives read-your-writes: a replica confirmed for a moment after a write was acknowledged
has it. Writes older than `max_lag_ms` need no memory, for every replica that may answer has them; when
more than `written_keys_max` are remembered, the oldest one's time becomes a floor for all keys.
"""

import random
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from keyheat.errors import UpstreamUnreachableError
from keyheat.mitigate import _checks as checks
from keyheat.mitigate import own_keys
from keyheat.mitigate._commands import Client, Command, Reply, is_cluster, is_refused_by_server
from keyheat.mitigate._node_clients import NodeClient, close_of, connect, decoded
from keyheat.mitigate._placement import slot_of
from keyheat.mitigate._reads import REPLICA_READS, verb_of
from keyheat.mitigate.steps import Steps

_NEVER: Final = float("-inf")
_HISTORY: Final = 64
_STANDALONE: Final = "primary"


@dataclass(frozen=True, slots=True)
class ReplicaReadsSettings:
    """Settings of reads from replicas.

    Attributes:
        policy: `primary` asks primaries only, `prefer-replica` a replica that may answer and else the
            primary, `replica` raises `UpstreamUnreachableError` if none may.
        max_lag_ms: A replica answers only if it has every write acknowledged longer ago than this.
        poll_interval_ms: Time between two looks at primaries and replicas of hot keys.
        read_your_writes: Whether a read after a write through this object must see it.
        replica_timeout_ms: How long a replica may take to answer before the primary is asked.
        keys_max: Hot keys at most.
        written_keys_max: Written keys remembered at most.
    """

    policy: Literal["primary", "prefer-replica", "replica"] = "prefer-replica"
    max_lag_ms: float = 1000.0
    poll_interval_ms: float = 200.0
    read_your_writes: bool = True
    replica_timeout_ms: float = 500.0
    keys_max: int = 1024
    written_keys_max: int = 10_000

    def __post_init__(self) -> None:
        checks.one_of("policy", self.policy, ("primary", "prefer-replica", "replica"))
        checks.at_least("poll_interval_ms", self.poll_interval_ms, 1)
        checks.at_least("max_lag_ms", self.max_lag_ms, self.poll_interval_ms)
        checks.one_of("read_your_writes", self.read_your_writes, (True, False))
        checks.at_least("replica_timeout_ms", self.replica_timeout_ms, 1)
        checks.whole_at_least("keys_max", self.keys_max, 1)
        checks.whole_at_least("written_keys_max", self.written_keys_max, 1)


@dataclass(slots=True)
class ReplicaReadsStats:
    """What reads from replicas have done.

    Attributes:
        replica_reads: Reads a replica answered.
        primary_reads: Reads of hot keys the primary answered.
        own_writes: Those of them because of a write through this object.
        replica_failures: Reads a replica did not answer, and the primary then did.
        polls: Looks taken.
        poll_failures: Nodes that did not answer one.
        usable: Replicas that may answer now.
    """

    replica_reads: int = 0
    primary_reads: int = 0
    own_writes: int = 0
    replica_failures: int = 0
    polls: int = 0
    poll_failures: int = 0
    usable: int = 0


@dataclass(slots=True)
class _Replica(NodeClient):
    confirmed_s: float = _NEVER

    def failed(self, now_s: float, first_s: float) -> None:
        self.confirmed_s = _NEVER
        NodeClient.failed(self, now_s, first_s)  # a dataclass with slots is not the class `super()` means


@dataclass(slots=True)
class _Group:
    """A primary and its replicas."""

    primary: str
    replicas: dict[str, _Replica] = field(default_factory=dict)
    history: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_HISTORY))


class ReplicaCore:
    """State and algorithm; polls of one object are serialised by the caller."""

    def __init__(
        self,
        client: Client,
        settings: ReplicaReadsSettings,
        clock: Callable[[], float],
        is_lock: Callable[[bytes], bool] | None,
    ) -> None:
        self.settings = settings
        self.stats = ReplicaReadsStats()
        self._client = client
        self._clock = clock
        self._is_lock = is_lock
        self._is_cluster = is_cluster(client)
        self._keys: set[bytes] = set()
        self._log = checks.OnceLogger("keyheat.mitigate.replica_reads")
        self.forget()

    def forget(self) -> None:
        """Know nothing of replicas: a forked child, which connects anew."""
        self._guard = threading.Lock()
        self._groups: dict[str, _Group] = {}
        self._written: OrderedDict[bytes, float] = OrderedDict()
        self._floor_s = _NEVER

    # ------------------------------------------------------------------ told hot, told cool

    def heat(self, key: bytes | str) -> bool:
        """Take a key in; False if it is a lock, one of keyheat's own, or there is no room."""
        name = checks.as_bytes(key)
        if own_keys.is_own_key(name) or (self._is_lock is not None and self._is_lock(name)):
            return False
        if name not in self._keys and len(self._keys) >= self.settings.keys_max:
            self._log.warning("keys_max", "keys_max keys are read from replicas already: others are not")
            return False
        self._keys = self._keys | {name}
        return True

    def cool(self, key: bytes | str) -> None:
        """Forget a key."""
        self._keys = self._keys - {checks.as_bytes(key)}

    # ------------------------------------------------------------------ reading and writing

    def read_steps(
        self, args: tuple[Any, ...], options: Mapping[str, Any], *, enabled: bool, key: bytes | None = None
    ) -> Steps[Reply]:
        """Run a read where the policy says; `key` is its key as the server sees it, if that is known."""
        plain = Command(self._client, args, options)
        if not enabled or len(args) < 2 or self.settings.policy == "primary":
            return (yield plain)
        key = checks.as_bytes(args[1]) if key is None else key
        verb = verb_of(args)
        if key not in self._keys or verb not in REPLICA_READS or (verb == b"EXISTS" and len(args) > 2):
            return (yield plain)
        replica = self._choose(key)
        if replica is not None:
            try:
                reply = yield Command(replica.client, args, options)
                reply = decoded(self._client, args, options, reply)
            except Exception as error:  # noqa: BLE001 - whatever a replica says, the primary has the last word
                if not is_refused_by_server(error):  # such an answer is to the command, and as good as any
                    self.stats.replica_failures += 1
                    self._log.warning("read", "a replica did not answer a read: %s", type(error).__name__)
                    replica.failed(self._clock(), self.settings.poll_interval_ms / 1000)
            else:
                self.stats.replica_reads += 1
                return reply
        elif self.settings.policy == "replica":
            raise UpstreamUnreachableError("no replica is known to be fresh enough (max_lag_ms)")
        self.stats.primary_reads += 1
        return (yield plain)

    def write_steps(self, args: tuple[Any, ...]) -> Steps[Reply]:
        """Run a write and remember it, whatever its outcome."""
        try:
            return (yield Command(self._client, args))
        finally:
            if len(args) > 1:
                self.wrote(args[1])

    def wrote(self, key: bytes | str) -> None:
        """Remember that a key was written just now."""
        name = checks.as_bytes(key)
        if not self.settings.read_your_writes or name not in self._keys:
            return
        with self._guard:
            self._written[name] = self._clock()
            self._written.move_to_end(name)
            if len(self._written) > self.settings.written_keys_max:
                self._floor_s = self._written.popitem(last=False)[1]

    def _choose(self, key: bytes) -> _Replica | None:
        group = self._groups.get(self._group_name(key) or "")
        if group is None:
            return None
        fresh_s = self._clock() - self.settings.max_lag_ms / 1000
        fresh = [each for each in group.replicas.values() if each.confirmed_s >= fresh_s]
        written_s = max(self._written.get(key, _NEVER), self._floor_s)
        usable = [each for each in fresh if each.confirmed_s >= written_s]
        self.stats.own_writes += bool(fresh) and not usable
        return random.choice(usable) if usable else None

    def _group_name(self, key: bytes) -> str | None:
        if not self._is_cluster:
            return _STANDALONE
        nodes = self._client.nodes_manager.slots_cache.get(slot_of(key))
        return str(nodes[0].name) if nodes else None

    # ------------------------------------------------------------------ polling

    def poll_steps(self, *, enabled: bool) -> Steps[None]:
        """Look at the primaries of hot keys and at their replicas."""
        if not enabled or self.settings.policy == "primary":
            return
        self.stats.polls += 1
        wanted = {name for key in self._keys if (name := self._group_name(key)) is not None}
        for gone in set(self._groups) - wanted:
            yield from self._close(self._groups.pop(gone).replicas.values())
        for name in wanted:
            try:
                yield from self._poll_group(self._groups.setdefault(name, _Group(name)))
            except Exception as error:  # noqa: BLE001 - its replicas are confirmed no more, and the primary reads
                self.stats.poll_failures += 1
                self._log.warning("primary", "a primary could not be polled: %s", type(error).__name__)
        now = self._clock()
        with self._guard:
            while self._written:
                key, written_s = next(iter(self._written.items()))
                if now - written_s <= self.settings.max_lag_ms / 1000:
                    break
                del self._written[key]
        fresh_s = now - self.settings.max_lag_ms / 1000
        groups = list(self._groups.values())
        self.stats.usable = sum(
            replica.confirmed_s >= fresh_s for group in groups for replica in group.replicas.values()
        )

    def _poll_group(self, group: _Group) -> Steps[None]:
        node = self._client.nodes_manager.get_node(node_name=group.primary) if self._is_cluster else None
        options = {"target_nodes": node} if node is not None else {}
        asked_s = self._clock()
        role = yield Command(self._client, ("ROLE",), options)
        if _text(role[0]) != "master":
            raise UpstreamUnreachableError("a primary is one no more")
        offset = int(role[1])
        if group.history and group.history[-1][1] > offset:
            group.history.clear()  # another primary, or one that lost its past
            for replica in group.replicas.values():
                replica.confirmed_s = _NEVER
        group.history.append((asked_s, offset))
        yield from self._meet(group, _replicas_of(role))
        for replica in list(group.replicas.values()):
            if replica.skip_until_s <= self._clock():
                yield from self._poll_replica(group, replica)

    def _poll_replica(self, group: _Group, replica: _Replica) -> Steps[None]:
        try:
            role = yield Command(replica.client, ("ROLE",))
        except Exception:  # noqa: BLE001 - down, loading or cut off: left out until it answers again
            self.stats.poll_failures += 1
            replica.failed(self._clock(), self.settings.poll_interval_ms / 1000)
            return
        replica.answered()
        if _text(role[0]) != "slave" or _text(role[3]) != "connected":
            replica.confirmed_s = _NEVER
            return
        applied = int(role[4])
        replica.confirmed_s = max(
            (asked_s for asked_s, offset in group.history if offset <= applied), default=_NEVER
        )

    def _meet(self, group: _Group, addresses: dict[str, tuple[str, int]]) -> Steps[None]:
        """Connect to new replicas, let go of those that left."""
        gone = [group.replicas[name] for name in group.replicas if name not in addresses]
        kept = {name: each for name, each in group.replicas.items() if name in addresses}
        for name, (host, port) in addresses.items():
            if name not in kept:
                kept[name] = _Replica(name, self._connect(host, port))
        group.replicas = kept
        yield from self._close(gone)

    def _connect(self, host: str, port: int) -> Client:
        timeout_s = self.settings.replica_timeout_ms / 1000
        return connect(self._client, host, port, timeout_s, is_read_only=self._is_cluster)

    def close_steps(self) -> Steps[None]:
        """Close every connection to replicas."""
        groups, self._groups = self._groups, {}
        for group in groups.values():
            yield from self._close(group.replicas.values())

    def _close(self, replicas: Any) -> Steps[None]:
        for replica in list(replicas):
            yield close_of(replica.client)


def _replicas_of(role: Reply) -> dict[str, tuple[str, int]]:
    """The replicas a primary names: a Cluster client's own view misses those added since it looked."""
    listed = [(_text(each[0]), int(each[1])) for each in role[2]]
    return {f"{host}:{port}": (host, port) for host, port in listed}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
