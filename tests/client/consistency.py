"""A consistency checker: readers and writers through protected clients, while everything fails at random.

    .venv/bin/python -m tests.client.consistency --seconds 600
    .venv/bin/python -m tests.client.consistency --seconds 20 --plant missing-fence    (finds it, status 1)

Two stages run side by side: one server behind a relay, with an append-only file that survives a restart,
and a Cluster of three primaries with a replica each; each with blocking and asyncio readers. Checked, of
every read: that it is no older than the bound (see `watch`), and that a client sees its own acknowledged
writes at once. At the end: that no acknowledged write of ours is lost, that nobody hangs, and that
descriptors, threads and memory have not grown. What faults there are is in `Server.FAULTS` and
`Cluster.FAULTS`; `--seed` repeats their order.
"""

import argparse
import contextlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import redis

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.client.relays import FaultyRelay
from tests.client.sides import Side, side_of
from tests.client.watch import CLIENT_ERRORS, KEY, Verdict, Watch

BOUND_MS = 100.0
OWN_KEY = "own"
HANG_S = 30.0
# What a long run may add: arenas, caches of the libraries, the logs of the writers.
GROWTH_MAX_KIB = 96 * 1024


class OwnWrites(threading.Thread):
    """Writes numbers through a protected client and reads each at once, as does nobody else."""

    def __init__(self, client: Any) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.over = threading.Event()
        self.acknowledged = 0
        self.unseen: list[str] = []
        self.errors = 0
        self.turns = 0

    def run(self) -> None:
        """Until `over`."""
        number = 0
        while not self.over.is_set():
            number += 1
            self.turns += 1
            try:
                self.client.set(OWN_KEY, number)
                self.acknowledged = number
                # Read often enough to be kept in memory between two writes.
                for _ in range(8):
                    seen = self.client.get(OWN_KEY)
                    if seen is None or int(seen) < number:
                        self.unseen.append(f"wrote {number}, then read {seen!r}")
            except CLIENT_ERRORS:
                self.errors += 1
                time.sleep(0.01)
            time.sleep(0.0005)


class Stage:
    """One deployment with its readers, writers and faults."""

    name: ClassVar[str]
    kind: ClassVar[str]

    def __init__(self, stack: contextlib.ExitStack, seed: int, plant: str | None) -> None:
        self.random = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.stack = stack
        self.watches: list[Watch] = []
        address, port = self.start()
        for kind in ("sync", "aio"):
            side = stack.enter_context(side_of(kind))
            client = self.protected(side, address)
            if plant is not None:
                engine = client.keyheat.binding.engine
                engine._plant(plant)
            self.watches.append(
                stack.enter_context(
                    Watch(
                        client,
                        side,
                        port,
                        kind=self.kind,
                        writes_per_s=200.0,
                        readers=2,
                        key=f"{{{KEY}}}:{kind}",
                    )
                )
            )
            if kind == "sync":
                self.own = OwnWrites(client)
        self.own.start()

    def start(self) -> tuple[str, int]:
        """Start the deployment: where clients and where the writers connect."""
        raise NotImplementedError

    def protected(self, side: Side, address: str) -> Any:
        """A protected client with a bound that never widens."""
        raise NotImplementedError

    def fail(self) -> None:
        """One fault, chosen at random."""
        fault = self.random.choice(self.actions())
        self.faults[fault.__name__] += 1
        fault()

    def actions(self) -> list[Callable[[], None]]:
        """The faults."""
        raise NotImplementedError

    def heal(self) -> None:
        """Undo what is still broken."""

    def last_own(self) -> int:
        """The number under the key of our own writes, as the server has it."""
        raise NotImplementedError

    def end(self) -> list[str]:
        """Stop; what was wrong."""
        wrong = []
        self.own.over.set()
        self.own.join(HANG_S)
        if self.own.is_alive():
            wrong.append(f"{self.name}: the writer of our own hangs")
        wrong += [f"{self.name}: {text}" for text in self.own.unseen[:3]]
        for watch in self.watches:
            verdict: Verdict = watch.verdict()
            if verdict.stale_max_ms > BOUND_MS:
                wrong.append(f"{self.name}: a read was {verdict.stale_max_ms:.1f} ms old: {verdict}")
            if verdict.local_hits < 100:
                wrong.append(f"{self.name}: next to nothing was answered from memory: {verdict}")
        try:
            lost = self.own.acknowledged - self.last_own()
        except redis.RedisError as error:
            return [*wrong, f"{self.name}: the server cannot be asked in the end: {error!r}"]
        if lost > 0:
            wrong.append(f"{self.name}: {lost} acknowledged writes of ours are lost")
        return wrong


class Server(Stage):
    """One server."""

    name = "server"
    kind = "one"

    def start(self) -> tuple[str, int]:
        """Start the deployment."""
        durable = {"appendonly": "yes", "appendfsync": "always"}
        self.server = self.stack.enter_context(EmbeddedServer(durable))
        self.relay = FaultyRelay(self.server.address)
        self.stack.callback(self.relay.close)
        return self.relay.address, self.server.port

    def protected(self, side: Side, address: str) -> Any:
        """A protected client through the relay."""
        return side.protected(address, {"max_staleness": BOUND_MS / 1e3})

    def actions(self) -> list[Callable[[], None]]:
        """The faults."""
        return [
            self.kill_tracking,
            self.kill_everybody,
            self.cut,
            self.freeze,
            self.refuse,
            self.pause,
            self.restart,
            self.calm,
        ]

    def calm(self) -> None:
        """Nothing, for a while: or nothing would ever be cached."""
        time.sleep(self.random.uniform(0.5, 2.0))

    def kill_tracking(self) -> None:
        """The server ends tracking connections."""
        with contextlib.suppress(redis.RedisError), self.server.client() as admin:
            for each in admin.client_list():
                if each["name"] == "keyheat-tracking":
                    admin.execute_command("CLIENT", "KILL", "ID", each["id"])

    def kill_everybody(self) -> None:
        """The server ends every connection but the one that asks."""
        with contextlib.suppress(redis.RedisError), self.server.client() as admin:
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def cut(self) -> None:
        """Something in between ends tracking connections."""
        with contextlib.suppress(OSError):  # some have ended already
            self.relay.cut_tracking()

    def freeze(self) -> None:
        """Tracking connections carry nothing and stay open."""
        self.relay.freeze_tracking()
        time.sleep(self.random.uniform(0.2, 2.0))
        self.relay.thaw()

    def refuse(self) -> None:
        """No new connections for a while, and the tracking ones end."""
        self.relay.refuse()
        self.cut()
        time.sleep(self.random.uniform(0.2, 1.0))
        self.relay.accept_again()

    def pause(self) -> None:
        """The server is stopped for a while."""
        self.server.pause()
        time.sleep(self.random.uniform(0.1, 1.0))
        self.server.resume()

    def restart(self) -> None:
        """The server is killed and comes back with what it had acknowledged."""
        self.server.kill()
        time.sleep(self.random.uniform(0.0, 0.5))
        self.server.restart()

    def heal(self) -> None:
        """Undo what is still broken."""
        self.relay.thaw()
        if not self.server.is_running:
            self.server.restart()

    def last_own(self) -> int:
        """The number under the key of our own writes."""
        with self.server.client() as admin:
            return int(admin.get(OWN_KEY) or 0)


class Cluster(Stage):
    """Three primaries with a replica each."""

    name = "cluster"
    kind = "cluster"

    def start(self) -> tuple[str, int]:
        """Start the deployment."""
        self.cluster = self.stack.enter_context(EmbeddedCluster(3, 1, node_timeout_ms=1500))
        return self.cluster.primaries[0].address, self.cluster.primaries[0].port

    def protected(self, side: Side, address: str) -> Any:
        """A protected Cluster client."""
        return side.cluster(address, {"max_staleness": BOUND_MS / 1e3})

    def actions(self) -> list[Callable[[], None]]:
        """The faults."""
        return [self.kill_tracking, self.kill_everybody, self.fail_over, self.reshard, self.calm, self.calm]

    def calm(self) -> None:
        """Nothing, for a while."""
        time.sleep(self.random.uniform(0.5, 2.0))

    def kill_tracking(self) -> None:
        """Every node ends tracking connections."""
        for node in self.cluster.nodes:
            with contextlib.suppress(redis.RedisError), node.client() as admin:
                for each in admin.client_list():
                    if each["name"] == "keyheat-tracking":
                        admin.execute_command("CLIENT", "KILL", "ID", each["id"])

    def kill_everybody(self) -> None:
        """One node ends its connections."""
        node = self.random.choice(self.cluster.nodes)
        with contextlib.suppress(redis.RedisError), node.client() as admin:
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def fail_over(self) -> None:
        """A replica takes over; nothing that was acknowledged is lost by that."""
        for node in self.random.sample(self.cluster.nodes, len(self.cluster.nodes)):
            with contextlib.suppress(redis.RedisError), node.client() as admin:
                if admin.execute_command("ROLE")[0] == b"slave":
                    admin.execute_command("CLUSTER", "FAILOVER")
                    break
        time.sleep(1.0)

    def reshard(self) -> None:
        """The slot of the read key moves to another primary, with its keys."""
        primaries = {}
        for node in self.cluster.nodes:
            with contextlib.suppress(redis.RedisError), node.client() as admin:
                if admin.execute_command("ROLE")[0] == b"master":
                    primaries[node] = admin.execute_command("CLUSTER", "MYID").decode()
        with contextlib.suppress(redis.RedisError, StopIteration):
            source = self.cluster.owner(KEY)
            if source not in primaries:
                return  # a failover is under way
            target = self.random.choice([node for node in primaries if node is not source])
            self._move(source, target, primaries)

    def _move(self, source: EmbeddedServer, target: EmbeddedServer, ids: dict[EmbeddedServer, str]) -> None:
        with source.client() as giving, target.client() as taking:
            slot = giving.execute_command("CLUSTER", "KEYSLOT", KEY)
            taking.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
            giving.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
            host, port = target.address.split(":")
            for key in giving.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                giving.execute_command("MIGRATE", host, port, key, 0, 5000)
            for node in (taking, giving):
                node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])

    def last_own(self) -> int:
        """The number under the key of our own writes."""
        with redis.RedisCluster("127.0.0.1", self.cluster.nodes[0].port) as admin:
            return int(admin.get(OWN_KEY) or 0)


def footprint() -> dict[str, int]:
    """Descriptors, threads and resident KiB of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": threading.active_count(),
        "resident_kib": int(resident.split()[1]),
    }


def check(
    seconds: float, seed: int, plant: str | None = None, stages: tuple[type[Stage], ...] = ()
) -> dict[str, Any]:
    """Run it; what was seen and what was wrong.

    Args:
        seconds: How long faults are made.
        seed: Of their order.
        plant: A bug to plant in every engine; see `Engine._plant`.
        stages: Which deployments; both by default.
    """
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:
        running = [
            kind(stack, seed + number, plant) for number, kind in enumerate(stages or (Server, Cluster))
        ]
        until = time.monotonic() + seconds
        time.sleep(min(5.0, seconds / 4))
        before = footprint()
        over = threading.Event()
        stack.callback(over.set)
        ended = [threading.Event() for _ in running]
        for stage, each in zip(running, ended, strict=True):
            threading.Thread(target=_fail_until, args=(stage, until, wrong, each, over), daemon=True).start()
        wrong += ["a fault hangs" for each in ended if not each.wait(seconds + 3 * HANG_S)]
        for stage in running:
            stage.heal()
        time.sleep(3.0)
        after = footprint()
        told: dict[str, Any] = {"seed": seed, "seconds": seconds, "before": before, "after": after}
        for stage in running:
            wrong += stage.end()
            told[stage.name] = {
                "faults": dict(stage.faults),
                "reads": sum(watch.reads for watch in stage.watches),
                "stats": [watch.client.keyheat.stats() for watch in stage.watches],
                "own_writes": stage.own.acknowledged,
                "own_errors": stage.own.errors,
            }
    # Pools keep a connection per thread that ever needed one: so many more may be open.
    if after["descriptors"] - before["descriptors"] > 64:
        wrong.append(f"descriptors grew from {before['descriptors']} to {after['descriptors']}")
    if after["resident_kib"] - before["resident_kib"] > GROWTH_MAX_KIB:
        wrong.append(f"memory grew from {before['resident_kib']} to {after['resident_kib']} KiB")
    told["wrong"] = wrong
    return told


def _fail_until(
    stage: Stage, until: float, wrong: list[str], ended: threading.Event, over: threading.Event
) -> None:
    """Make faults until then. The thread lives on until `over`: a server ends with the one who started it."""
    try:
        _fail(stage, until, wrong)
    finally:
        ended.set()
    over.wait()


def _fail(stage: Stage, until: float, wrong: list[str]) -> None:
    """Make faults until then, and see that reads go on in between."""
    while time.monotonic() < until:
        try:
            stage.fail()
        except Exception as error:  # noqa: BLE001  a checker that stops making faults must say so
            wrong.append(f"{stage.name}: a fault could not be made: {error!r}")
            return
        reads, turns = [watch.reads for watch in stage.watches], stage.own.turns
        deadline = time.monotonic() + HANG_S
        while any(watch.reads == past for watch, past in zip(stage.watches, reads, strict=True)) or (
            stage.own.turns == turns
        ):
            if time.monotonic() > deadline:
                wrong.append(f"{stage.name}: somebody stands still for {HANG_S:.0f} s")
                return
            time.sleep(0.01)


def main() -> int:
    """Run it from a command line; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="how long faults are made (600)")
    parser.add_argument("--seed", type=int, default=None, help="of their order; by default another each time")
    parser.add_argument("--plant", choices=("missing-fence", "deaf"), help="a bug that must be found")
    parser.add_argument("--stage", choices=("server", "cluster"), help="one deployment only")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    sys.stderr.write(f"seed {seed}\n")
    chosen: dict[str | None, tuple[type[Stage], ...]] = {"server": (Server,), "cluster": (Cluster,), None: ()}
    stages = chosen[options.stage]
    with contextlib.redirect_stdout(sys.stderr):
        told = check(options.seconds, seed, options.plant, stages)
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return int(bool(told["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
