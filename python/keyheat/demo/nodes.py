"""What the Cluster's nodes did, by their own count: `INFO commandstats`.

Counted are the commands that read or write data, the ones of keyheat's fills among them. Not counted
is what keeps a connection or a proof alive: it is not load that a key causes.
"""

from typing import Any, Final

from redis.crc import key_slot

from keyheat.demo.client import SALE_KEY, sale_value
from keyheat.demo.profile import Profile
from keyheat.server.cluster import EmbeddedCluster, slot_ranges

NOT_DATA: Final = frozenset(
    [
        "acl",
        "asking",
        "auth",
        "client",
        "cluster",
        "command",
        "config",
        "exists",
        "hello",
        "info",
        "latency",
        "ping",
        "psync",
        "quit",
        "readonly",
        "replconf",
        "reset",
        "role",
        "select",
        "slowlog",
    ]
)
_PIPELINE: Final = 2000


class Nodes:
    """Direct connections to the primaries."""

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self._cluster = cluster
        self._clients = [node.client(socket_timeout=10) for node in cluster.primaries]

    @property
    def addresses(self) -> list[str]:
        """`host:port` of each primary."""
        return [node.address for node in self._cluster.primaries]

    def load(self, profile: Profile, value_bytes: int) -> None:
        """Write every key the clients will read, each to the node that owns its slot."""
        ranges = slot_ranges(len(self._clients))
        for client, (first, last) in zip(self._clients, ranges, strict=True):
            pipeline = client.pipeline(transaction=False)
            for index, key in enumerate(profile.keys):
                if first <= key_slot(key) <= last:
                    pipeline.set(key, profile.value(index))
                    if len(pipeline) >= _PIPELINE:
                        pipeline.execute()
            if first <= key_slot(SALE_KEY) <= last:
                pipeline.set(SALE_KEY, sale_value(0, value_bytes))
            pipeline.execute()

    def calls(self) -> list[dict[str, int]]:
        """Data commands so far, by node and by name."""
        return [_data_calls(client.info("commandstats")) for client in self._clients]

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            client.close()


def _data_calls(stats: Any) -> dict[str, int]:  # noqa: ANN401 - redis-py's type is a union with awaitables
    calls: dict[str, int] = {}
    for name, numbers in stats.items():
        command = name.removeprefix("cmdstat_").split("|", 1)[0]
        if command not in NOT_DATA:
            calls[command] = calls.get(command, 0) + int(numbers["calls"])
    return calls


def difference(later: list[dict[str, int]], earlier: list[dict[str, int]]) -> list[dict[str, int]]:
    """What happened in between, by node and by name."""
    return [
        {name: count - before.get(name, 0) for name, count in after.items()}
        for after, before in zip(later, earlier, strict=True)
    ]


def imbalance(calls: list[dict[str, int]]) -> float:
    """The busiest node's operations over the mean; 1 is even, the number of nodes is the worst."""
    ops = [sum(node.values()) for node in calls]
    return max(ops) * len(ops) / sum(ops) if sum(ops) else 1.0
