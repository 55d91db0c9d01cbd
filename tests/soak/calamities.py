"""The stage of the staleness bound: one server, a proxy before it, and everything between them fails.

`plant`: `bound` gives the proxy a bound ten times the one that is checked, `deaf` swallows the server's
invalidations, `swapped` gives now and then a client the replies of another. Each must be found.
"""

import contextlib
import random
import time
from collections import Counter
from pathlib import Path

from keyheat.server.binary import find_binary
from keyheat.server.embedded import EmbeddedServer
from tests.client.relays import FaultyRelay
from tests.soak.crowd import BOUND_MS, Crowd, Told, kill_somebody, settle
from tests.soak.procs import ProxyProcess
from tests.soak.swapping import SwappingRelay
from tests.soak.wire import Wire

PLANTS = ("bound", "deaf", "swapped")


class Calamities:
    """The faults, in random order."""

    def __init__(self, server: EmbeddedServer, relay: FaultyRelay, proxy: ProxyProcess, seed: int) -> None:
        self._server = server
        self._relay = relay
        self._proxy = proxy
        self._random = random.Random(seed)
        self.made: Counter[str] = Counter()

    def make(self) -> None:
        """One of them."""
        kinds = (
            self.cut,
            self.freeze,
            self.refuse,
            self.pause,
            self.client_pause,
            self.stop,
            self.kill,
            self.calm,
        )
        kind = self._random.choice(kinds)
        self.made[kind.__name__] += 1
        kind()

    def cut(self) -> None:
        """The tracking connections end."""
        with contextlib.suppress(OSError):  # some have ended already
            self._relay.cut_tracking()

    def freeze(self) -> None:
        """The tracking connections stay open and carry nothing."""
        self._relay.freeze_tracking()
        time.sleep(self._random.uniform(0.2, 1.0))
        self._relay.thaw()

    def refuse(self) -> None:
        """Nobody can connect anew, and tracking connections end."""
        self._relay.refuse()
        self.cut()
        time.sleep(self._random.uniform(0.1, 0.6))
        self._relay.accept_again()

    def pause(self) -> None:
        """The server is stopped for a while."""
        self._server.pause()
        time.sleep(self._random.uniform(0.05, 0.6))
        self._server.resume()

    def client_pause(self) -> None:
        """The server makes everybody wait."""
        with Wire(self._server.address) as wire:
            wire.ask("CLIENT", "PAUSE", self._random.randint(50, 400), self._random.choice(("ALL", "WRITE")))

    def stop(self) -> None:
        """The proxy is stopped for a while, and does not know it."""
        self._proxy.stop()
        time.sleep(self._random.uniform(0.02, 0.6))
        self._proxy.go_on()

    def kill(self) -> None:
        """The server ends some connections."""
        for _ in range(self._random.randint(1, 4)):
            kill_somebody(self._server.address, self._random)

    def calm(self) -> None:
        """Nothing."""
        time.sleep(self._random.uniform(0.1, 0.5))


def run(seconds: float, seed: int, directory: Path, plant: str | None = None) -> Told:
    """Play it."""
    told = Told("staleness", seed)
    bound_ms = int(BOUND_MS * 10 if plant == "bound" else BOUND_MS)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(binary=find_binary(prefer_wheel=True)))
        relay = FaultyRelay(server.address)
        stack.callback(relay.close)
        relay.is_deaf = plant == "deaf"
        upstream = f"redis://{relay.address}"
        proxy = stack.enter_context(ProxyProcess(directory, upstream, max_staleness_ms=bound_ms))
        address = proxy.listen
        if plant == "swapped":
            swapping = SwappingRelay(address)
            stack.callback(swapping.close)
            address = swapping.address
        crowd = stack.enter_context(Crowd(address, lambda: server.address, seed))
        calamities = Calamities(server, relay, proxy, seed)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not crowd.wrong:
            if not settle(crowd, lambda: proxy.stats()["local_hits"], 50):
                told.wrong.append("nothing is answered from the proxy's memory any more")
                break
            calamities.make()
        if plant == "swapped":
            swapping.close()  # it holds back what somebody waits for
        crowd.stop()
        told.figures["local_hits"] = proxy.stats()["local_hits"]
        told.figures["faults"] = dict(calamities.made)
        crowd.tell(told)
        crowd.check_lists(told, lambda _: server.address)
    return told
