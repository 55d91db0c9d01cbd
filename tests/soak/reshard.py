"""The stage of resharding: the slot of the hot key moves to and fro between primaries of a Cluster while hot.

By hand, as tools do it: IMPORTING, MIGRATING, MIGRATE key by key, SETSLOT NODE; with pauses in between, so
that reads and writes meet every half-way state.

`plant`: `lost` has a move lose a number of a list, `old` has one bring the first value of the hot key. Each
must be found.
"""

import random
import time
from pathlib import Path
from typing import Any

from keyheat.server.binary import find_binary
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.soak.crowd import BOUND_MS, HOT_KEY, TAG, Crowd, Told, kill_somebody, settle
from tests.soak.procs import ProxyProcess
from tests.soak.wire import Refused, Wire

PLANTS = ("lost", "old")


class Moves:
    """Moves the hot slot from node to node."""

    def __init__(self, cluster: EmbeddedCluster, seed: int) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self.owner = cluster.owner(TAG)
        self.count = 0
        self._ids = {id(node): self._ask(node, "CLUSTER", "MYID").decode() for node in cluster.primaries}
        self._slot = self._ask(self.owner, "CLUSTER", "KEYSLOT", HOT_KEY)

    def move(self) -> None:
        """One move to another primary."""
        source = self.owner
        target = self._random.choice([node for node in self._cluster.primaries if node is not source])
        self._ask(target, "CLUSTER", "SETSLOT", self._slot, "IMPORTING", self._ids[id(source)])
        self._wait()
        self._ask(source, "CLUSTER", "SETSLOT", self._slot, "MIGRATING", self._ids[id(target)])
        while keys := self._ask(source, "CLUSTER", "GETKEYSINSLOT", self._slot, 100):
            self._random.shuffle(keys)
            for key in keys:
                self._wait()
                host, port = target.address.split(":")
                self._ask(source, "MIGRATE", host, port, key, 0, 5000)
        self._wait()
        # The new owner first: nobody may be without one.
        others = [node for node in self._cluster.primaries if node not in (source, target)]
        for node in (target, source, *others):
            self._ask(node, "CLUSTER", "SETSLOT", self._slot, "NODE", self._ids[id(target)])
            self._wait()
        self.owner = target
        self.count += 1

    def spoil(self, plant: str | None, list_key: str) -> None:
        """A fault of a move, for those who check it."""
        if plant == "lost":
            self._ask(self.owner, "LPOP", list_key)
        elif plant == "old":
            self._ask(self.owner, "SET", HOT_KEY, 1)

    def _wait(self) -> None:
        time.sleep(self._random.choice((0.0, 0.0, self._random.uniform(0.0, 0.3))))

    def _ask(self, node: EmbeddedServer, *words: str | int | bytes) -> Any:
        with Wire(node.address) as wire:
            reply = wire.ask(*words)
        if isinstance(reply, Refused):
            raise TypeError(f"{words[:3]} is answered {reply}")
        return reply


def run(seconds: float, seed: int, directory: Path, plant: str | None = None) -> Told:
    """Play it."""
    told = Told("reshard", seed)
    chooser = random.Random(seed)
    binary = find_binary(prefer_wheel=True)
    with EmbeddedCluster(3, binary=binary) as cluster:
        moves = Moves(cluster, seed)
        with (
            ProxyProcess(directory, cluster.url, max_staleness_ms=int(BOUND_MS)) as proxy,
            Crowd(proxy.listen, lambda: moves.owner.address, seed) as crowd,
        ):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if not settle(crowd, lambda: proxy.stats()["local_hits"], 50):
                    told.wrong.append("nothing is answered from the proxy's memory any more")
                    break
                moves.move()
                moves.spoil(plant, crowd.beside[0].list_key)
                if chooser.random() < 0.5:
                    kill_somebody(moves.owner.address, chooser)
            crowd.stop()
            told.figures |= {"local_hits": proxy.stats()["local_hits"], "moves": moves.count}
            crowd.tell(told)
            crowd.check_lists(
                told, lambda key: (moves.owner if TAG in key[: len(TAG) + 1] else cluster.owner(key)).address
            )
    return told
