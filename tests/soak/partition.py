"""The stage of a partition: proxy and server in two network namespaces, and the link between them goes down.

The proxy lives in a namespace made for it, with two links to here: by one it reaches the server, by the
other clients reach it. Taking down our end of the first one loses every packet without a word to anybody.
`plant`: `bound`.
"""

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keyheat.server.binary import find_binary
from keyheat.server.embedded import EmbeddedServer
from tests.soak.crowd import BOUND_MS, Crowd, Told, settle
from tests.soak.procs import ProxyProcess

PLANTS = ("bound",)
# How long nothing is carried.
_DOWN_S = (0.05, 1.5)


def missing() -> str:
    """What this stage needs and does not have; empty if it can be played."""
    if shutil.which("ip") is None:
        return "partition: needs the program ip (Debian: iproute2)"
    if os.geteuid() != 0:
        return "partition: needs root, to make a network namespace"
    done = _ip("netns", "add", f"keyheat-try-{os.getpid()}")
    if done.returncode:
        return f"partition: no network namespace can be made: {done.stderr.strip()}"
    _ip("netns", "del", f"keyheat-try-{os.getpid()}")
    return ""


@dataclass(frozen=True)
class Links:
    """The namespace, and the addresses at the ends of its two links."""

    name: str
    server: str
    proxy: str
    device: str

    def cut(self) -> None:
        """Lose everything between proxy and server."""
        checked("link", "set", self.device, "down")

    def mend(self) -> None:
        """Carry it again."""
        checked("link", "set", self.device, "up")


@contextlib.contextmanager
def namespace(number: int) -> Iterator[Links]:
    """A namespace with two links, gone at the end; its networks are of 198.18.0.0/15, kept for tests."""
    name = f"keyheat-{os.getpid()}-{number}"
    part = (os.getpid() * 4 + number * 2) % 250
    checked("netns", "add", name)
    try:
        for offset, kind in enumerate(("u", "c")):
            link = f"kh{kind}{os.getpid() % 100_000}-{number}"
            here, there = f"{link}h", f"{link}t"
            network = f"198.18.{part + offset}"
            checked("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
            checked("addr", "add", f"{network}.1/24", "dev", here)
            checked("link", "set", here, "up")
            checked("-n", name, "addr", "add", f"{network}.2/24", "dev", there)
            checked("-n", name, "link", "set", there, "up")
        checked("-n", name, "link", "set", "lo", "up")
        device = f"khu{os.getpid() % 100_000}-{number}h"
        yield Links(name, f"198.18.{part}.1", f"198.18.{part + 1}.2", device)
    finally:
        # Both ends of its links go with it.
        _ip("netns", "del", name)


def run(seconds: float, seed: int, directory: Path, plant: str | None = None) -> Told:
    """Play it."""
    told = Told("partition", seed)
    bound_ms = int(BOUND_MS * 10 if plant == "bound" else BOUND_MS)
    chooser = random.Random(seed)
    with namespace(seed % 9) as links:
        config = {"bind": f"127.0.0.1 {links.server}", "protected-mode": "no"}
        inside = (shutil.which("ip") or "ip", "netns", "exec", links.name)
        with (
            EmbeddedServer(config, binary=find_binary(prefer_wheel=True)) as server,
            ProxyProcess(
                directory,
                f"redis://{links.server}:{server.port}",
                inside=inside,
                host=links.proxy,
                max_staleness_ms=bound_ms,
            ) as proxy,
            Crowd(proxy.listen, lambda: server.address, seed) as crowd,
        ):
            until, cuts = time.monotonic() + seconds, 0
            while time.monotonic() < until:
                if not settle(crowd, lambda: proxy.stats()["local_hits"], 50):
                    told.wrong.append("nothing is answered from the proxy's memory any more")
                    break
                links.cut()
                time.sleep(chooser.uniform(*_DOWN_S))
                links.mend()
                cuts += 1
            crowd.stop()
            told.figures |= {"local_hits": proxy.stats()["local_hits"], "partitions": cuts}
            crowd.tell(told)
            crowd.check_lists(told, lambda _: server.address)
    return told


def checked(*words: str) -> None:
    """Run `ip`."""
    done = _ip(*words)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _ip(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)  # noqa: S607
