"""The stages of failover: a primary that Sentinels or a Cluster watch is killed or paused under load.

`plant`: `lost` removes an acknowledged number from the new primary before the lists are judged, `again`
appends one a second time. Each must be found.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from keyheat.server.binary import find_binary
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.mitigate.sentinels import SERVICE, sentinel
from tests.proxy.test_replicas import replicate
from tests.soak import journal
from tests.soak.ages import now_ns
from tests.soak.crowd import BOUND_MS, LOG_KEY, TAG, Crowd, Told, kept_numbers, kill_somebody, settle, twice
from tests.soak.matched import Written
from tests.soak.procs import ProxyProcess
from tests.soak.wire import Wire

PLANTS = ("lost", "again")
# From the promoted server saying `master` to the first write acknowledged through the proxy.
BACK_WITHIN_S = 1.0
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Deployment:
    """The servers of a stage: the primary that will fail, those that may follow it; the proxy's upstream."""

    upstream: str
    primary: EmbeddedServer
    heirs: list[EmbeddedServer]
    # Keys of another tag may be with another primary.
    owner: Callable[[str], EmbeddedServer]
    # Which address those who are asked for the primary name.
    named: Callable[[], str]

    def leader(self) -> EmbeddedServer | None:
        """Who says that it is primary, of those who answer; an heir is believed first."""
        return next((each for each in (*self.heirs, self.primary) if role(each) == b"master"), None)


@contextlib.contextmanager
def by_sentinel(directory: Path) -> Iterator[Deployment]:
    """A primary and two replicas, watched by a Sentinel."""
    binary = find_binary(prefer_wheel=True)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(EmbeddedServer(journal.CONFIG, binary=binary)) for _ in range(3)]
        for replica in servers[1:]:
            replicate(replica, servers[0])
        port = stack.enter_context(sentinel(binary, servers[0], directory))
        url = f"redis+sentinel://127.0.0.1:{port}/{SERVICE}"

        def named() -> str:
            with Wire(f"127.0.0.1:{port}", timeout_s=1.0) as wire:
                host, its_port = wire.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                return f"{host.decode()}:{its_port.decode()}"

        yield Deployment(url, servers[0], servers[1:], lambda _: servers[0], named)


@contextlib.contextmanager
def by_cluster(_directory: Path) -> Iterator[Deployment]:
    """Three primaries with a replica each."""
    binary = find_binary(prefer_wheel=True)
    with EmbeddedCluster(3, 1, node_timeout_ms=1000, config=journal.CONFIG, binary=binary) as cluster:
        primary = cluster.owner(TAG)
        heir = cluster.replicas[cluster.primaries.index(primary)]
        witness = next(node for node in cluster.primaries if node is not primary)

        def named() -> str:
            with Wire(witness.address, timeout_s=1.0) as wire:
                slot = wire.ask("CLUSTER", "KEYSLOT", TAG)
                owners = [each[2] for each in wire.ask("CLUSTER", "SLOTS") if each[0] <= slot <= each[1]]
                return f"{owners[0][0].decode()}:{owners[0][1]}" if owners else ""

        yield Deployment(cluster.url, primary, [heir], cluster.owner, named)


def role(server: EmbeddedServer) -> bytes | None:
    """What a server says it is; nothing if it does not answer at once."""
    with contextlib.suppress(OSError, EOFError, IndexError), Wire(server.address, timeout_s=0.3) as wire:
        said = wire.ask("ROLE")
        return said[0] if isinstance(said, list) else None
    return None


class Failover:
    """One primary fails under load and another follows it."""

    def __init__(self, kind: str, how: str, seed: int, directory: Path, plant: str | None = None) -> None:
        self._make = by_cluster if kind == "cluster" else by_sentinel
        self._how = how
        self._random = random.Random(seed)
        self._directory = directory
        self._plant = plant
        self.told = Told(f"{kind}-{how}", seed)

    def run(self, seconds: float, back_within_s: float = BACK_WITHIN_S) -> Told:
        """Play it: load, fault, recovery, load, judgement."""
        self._back_within_s = back_within_s
        with self._make(self._directory) as servers:
            leader = servers.primary

            def primary() -> str | None:
                return leader.address if (leader_now := servers.leader()) is None else leader_now.address

            with (
                ProxyProcess(self._directory, servers.upstream, max_staleness_ms=int(BOUND_MS)) as proxy,
                Crowd(proxy.listen, primary, self.told.seed, is_logged=True, patience_s=0.5) as crowd,
            ):
                if not settle(crowd, lambda: proxy.stats()["local_hits"], 200):
                    self.told.wrong.append("nothing is answered from the proxy's memory")
                self._disturb(servers.primary, seconds / 3)
                new = self._fail(servers, crowd)
                self._disturb(new, seconds / 3)
                crowd.stop()
                self.told.figures["local_hits"] = proxy.stats()["local_hits"]
                self._judge(servers, crowd, new)
        return self.told

    def _disturb(self, server: EmbeddedServer, seconds: float) -> None:
        """Random connections to a server end, the proxy's among them."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(self._random.uniform(0.05, 0.3))
            kill_somebody(server.address, self._random)

    def _fail(self, servers: Deployment, crowd: Crowd) -> EmbeddedServer:
        """The primary fails; returns who followed, once service is back."""
        # A machine that stands still makes a Sentinel see failures of its own.
        self._is_early = role(servers.primary) != b"master"
        servers.primary.kill() if self._how == "killed" else servers.primary.pause()
        failed = self._failed = time.monotonic()
        while (new := next((heir for heir in servers.heirs if role(heir) == b"master"), None)) is None:
            if time.monotonic() > failed + _PATIENCE_S:
                raise TimeoutError("the servers did not fail over")
            time.sleep(0.005)
        self._promoted, promoted_ns = time.monotonic(), now_ns()
        self.told.figures["failover_s"] = round(self._promoted - failed, 2)
        self._wait_for_service(servers, crowd, new)
        # When the servers themselves took a write again.
        direct = next((at for at in list(crowd.direct.acked_ns.values()) if at > promoted_ns), 0)
        self.told.figures["direct_s"] = round((direct - promoted_ns) / 1e9, 3) if direct else None
        if self._how == "paused":
            time.sleep(self._random.uniform(0.0, 0.5))
        # What it knows is kept before it comes to and takes over the new primary's state.
        self._journal = journal.pushed(servers.primary._directory)
        if self._how == "paused":
            servers.primary.resume()
        return new

    def _wait_for_service(self, servers: Deployment, crowd: Crowd, new: EmbeddedServer) -> None:
        """Until a write goes through; note also when those who are asked for the primary name the new one."""
        named_s: float | None = None
        back: list[float] = []
        while (not back or named_s is None) and time.monotonic() < self._promoted + _PATIENCE_S:
            if named_s is None and servers.named() == new.address:
                named_s = time.monotonic() - self._promoted
                self.told.figures["named_s"] = round(named_s, 3)
            back = [at for each in crowd.beside if (at := each.first_after(self._promoted))]
            time.sleep(0.005)
        self._back = min(back, default=self._promoted + _PATIENCE_S)
        back_s = self._back - self._promoted
        self.told.figures["back_s"] = round(back_s, 3)
        if back_s > self._back_within_s:
            self.told.wrong.append(
                f"service was back after {back_s:.2f} s, the target is {self._back_within_s:g}"
            )

    def _judge(self, servers: Deployment, crowd: Crowd, new: EmbeddedServer) -> None:
        if role(new) != b"master" or servers.named() != new.address or self._is_early:
            self.told.disturbed = "DISTURBED by another failover that nobody made: nothing is judged"
            self.told.wrong.clear()
            return
        logged = kept_numbers(new.address, LOG_KEY)
        crowd.tell(self.told, survivors=set(logged))
        lates, lost_by_servers = 0, len(set(crowd.direct.acked_ns) - set(logged))
        for each in crowd.matched:
            owner = servers.owner(each.list_key)
            is_moved = owner is servers.primary
            address = new.address if is_moved else owner.address
            self._spoil(address, each.list_key, each.acknowledged)
            kept = kept_numbers(address, each.list_key)
            old = self._journal[each.list_key] if is_moved else {}
            lost = [write for write in each.acknowledged if kept[write.number] == 0]
            # What a paused primary had in its sockets it acknowledges when it comes to, as to any client;
            # what was sent once the proxy followed the new one may not have gone there.
            held = self._failed - 1.0 if self._how == "paused" else self._back
            late = [write for write in lost if held < write.sent < self._back]
            invented = [w.number for w in lost if not old.get(w.number) and (w not in late)]
            lates += len([write for write in late if write.at > self._back])
            lost_by_servers += len(lost) - len(invented)
            if invented:
                self.told.wrong.append(
                    f"acknowledged, and no server has it: {invented[:5]} of {each.list_key}"
                )
            self.told.wrong += twice(each.list_key, kept)
        self.told.figures |= {"lost_by_servers": lost_by_servers, "acknowledged_late": lates}

    def _spoil(self, address: str, key: str, acknowledged: list[Written]) -> None:
        if self._plant not in {"lost", "again"} or not acknowledged:
            return
        last = acknowledged[-1].number
        with Wire(address) as wire:
            wire.ask("LREM", key, 0, last) if self._plant == "lost" else wire.ask("RPUSH", key, last)
