"""An embedded Cluster: primaries, and replicas if asked for, formed in about a second.

Forming is `CLUSTER ADDSLOTSRANGE` and `SET-CONFIG-EPOCH` on every primary, `MEET` from the first
node to the others, and `REPLICATE` on the replicas: what `redis-cli --cluster create` does, without
needing it. The epochs are set because nodes that all start at 0 would first have to settle them.
"""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from keyheat.errors import EmbeddedServerError
from keyheat.server.embedded import HOST, EmbeddedServer
from keyheat.server.rundir import RunDir

SLOTS: Final = 16_384
_FORM_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.02


class EmbeddedCluster:
    """A running Cluster; `close()` ends all of it.

    Args:
        primaries: How many primaries share the slots evenly.
        replicas: How many replicas each primary has.
        node_timeout_ms: `cluster-node-timeout`: after it a silent node is held to be down.
        config: Directives for every node.
        binary: The server program; by default what `find_binary` finds.

    Raises:
        EmbeddedServerError: A node did not start, or they did not agree in time.
    """

    def __init__(
        self,
        primaries: int = 3,
        replicas: int = 0,
        *,
        node_timeout_ms: int = 15_000,
        config: Mapping[str, str] | None = None,
        binary: str | None = None,
    ) -> None:
        self._rundir = RunDir()
        self._config = {"cluster-node-timeout": str(node_timeout_ms), **(config or {})}
        self._binary = binary
        self.primaries: list[EmbeddedServer] = []
        self.replicas: list[EmbeddedServer] = []
        try:
            for _ in range(primaries):
                self.primaries.append(self._node())
            for _ in range(primaries * replicas):
                self.replicas.append(self._node())
            self._form()
        except BaseException:
            self.close()
            raise

    @property
    def nodes(self) -> list[EmbeddedServer]:
        """All nodes, the first primaries first (a failover does not reorder them)."""
        return [*self.primaries, *self.replicas]

    @property
    def addresses(self) -> list[str]:
        """`host:port` of every node."""
        return [node.address for node in self.nodes]

    @property
    def url(self) -> str:
        """All nodes as seeds in one URL."""
        return "redis://" + ",".join(self.addresses)

    def owner(self, key: bytes | str) -> EmbeddedServer:
        """The node that served the key's slot when the Cluster was formed."""
        from redis.crc import key_slot  # noqa: PLC0415 - only here

        slot = key_slot(key.encode() if isinstance(key, str) else key)
        return next(
            node
            for node, (first, last) in zip(self.primaries, slot_ranges(len(self.primaries)), strict=True)
            if first <= slot <= last
        )

    def wait_until_ok(self, timeout_s: float = _FORM_TIMEOUT_S) -> None:
        """Wait until every running node says `cluster_state:ok` and knows all slots."""
        _poll(self._is_ok, timeout_s, "the Cluster did not become ok")

    def close(self) -> None:
        """End every node and remove their files; a second call does nothing."""
        for node in self.nodes:
            node.close()
        self._rundir.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _node(self) -> EmbeddedServer:
        return EmbeddedServer(
            self._config,
            binary=self._binary,
            clustered=True,
            rundir=self._rundir,
            name=f"node-{len(self.nodes)}",
        )

    def _form(self) -> None:
        for epoch, (node, (first, last)) in enumerate(
            zip(self.primaries, slot_ranges(len(self.primaries)), strict=True), start=1
        ):
            _command(node, "CLUSTER", "ADDSLOTSRANGE", first, last)
            _command(node, "CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in self.nodes[1:]:
            _command(self.primaries[0], "CLUSTER", "MEET", HOST, node.port, node.bus_port)
        expected = len(self.nodes)
        _poll(
            lambda: all(_info(node).get("cluster_known_nodes") == str(expected) for node in self.nodes),
            _FORM_TIMEOUT_S,
            "the nodes did not meet",
        )
        for index, replica in enumerate(self.replicas):
            primary = self.primaries[index % len(self.primaries)]
            name = _text(_command(primary, "CLUSTER", "MYID"))
            _poll(
                lambda replica=replica, name=name: _replicates(replica, name),  # type: ignore[misc]
                _FORM_TIMEOUT_S,
                "a replica did not find its primary",
            )
        self.wait_until_ok()
        _poll(
            lambda: all(_link_is_up(replica) for replica in self.replicas),
            _FORM_TIMEOUT_S,
            "a replica did not get its copy",
        )

    def _is_ok(self) -> bool:
        running = [node for node in self.nodes if node.is_running]
        return all(
            info.get("cluster_state") == "ok" and info.get("cluster_slots_ok") == str(SLOTS)
            for info in map(_info, running)
        )


def slot_ranges(primaries: int) -> list[tuple[int, int]]:
    """The first and last slot of each of `primaries` even shares."""
    return [(SLOTS * i // primaries, SLOTS * (i + 1) // primaries - 1) for i in range(primaries)]


def _poll(is_done: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"{otherwise} within {timeout_s:g} s")
        time.sleep(_POLL_S)


def _command(node: EmbeddedServer, *command: object) -> Any:  # noqa: ANN401 - whatever the server answers
    with node.client(socket_timeout=5) as client:
        return client.execute_command(*command)


def _info(node: EmbeddedServer) -> dict[str, str]:
    from redis import RedisError  # noqa: PLC0415 - only here

    try:
        answer = _command(node, "CLUSTER", "INFO")
    except RedisError:
        return {}  # still coming up, or going down
    if isinstance(answer, dict):
        return {_text(name): _text(value) for name, value in answer.items()}
    return dict(line.split(":", 1) for line in _text(answer).split() if ":" in line)


def _replicates(replica: EmbeddedServer, primary_id: str) -> bool:
    from redis import RedisError  # noqa: PLC0415 - only here

    try:
        _command(replica, "CLUSTER", "REPLICATE", primary_id)
    except RedisError:
        return False  # it has not heard of that node yet
    return True


def _link_is_up(replica: EmbeddedServer) -> bool:
    with replica.client() as client:
        replication: Any = client.info("replication")
        return bool(replication.get("master_link_status") == "up")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
