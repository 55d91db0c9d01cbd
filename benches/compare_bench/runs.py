"""One run of a setup: load for so long, and what it cost in CPU, memory and freshness."""

import bisect
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from compare_bench.load import Workload, value
from compare_bench.setups import Setup
from keyheat.server.embedded import EmbeddedServer
from proxy_bench.measure import cpu_ns, machine_busy_s

WORKERS: Final = 2
CONNECTIONS: Final = 16
WRITES_PER_S: Final = 50.0
_LOAD: Final = Path(__file__).with_name("load.py")


@dataclass(frozen=True)
class Run:
    """What one run gave; CPU in microseconds per request, memory in MiB, ages in milliseconds."""

    requests_per_s: float
    servers_us: float
    proxies_us: float
    servers_mib: float
    proxies_mib: float
    oldest_ms: float
    p99_ms: float
    stale_share: float
    reads: int
    others_cores: float


class Writer(threading.Thread):
    """Rewrites the watched key at the primary, and knows when each write was acknowledged."""

    def __init__(self, setup: Setup, work: Workload, first: int) -> None:
        super().__init__(daemon=True)
        self._client = setup.primary.client()
        self._key, self._size = work.keys[work.watched], work.sizes[work.watched]
        self._over = threading.Event()
        self._number = first
        self.numbers: list[int] = []
        self.acked_ns: list[int] = []

    def run(self) -> None:
        """Until `stop()`."""
        while not self._over.wait(1 / WRITES_PER_S):
            self._number += 1
            self._client.set(self._key, value(self._size, self._number))
            self.numbers.append(self._number)
            self.acked_ns.append(time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def stop(self) -> int:
        """End; the last number."""
        self._over.set()
        self.join()
        self._client.close()
        return self._number


class Generators:
    """The processes that ask one setup."""

    def __init__(self, setup: Setup, name: str, work: Workload, folder: Path) -> None:
        self._noted = [folder / f"noted-{number}" for number in range(WORKERS)]
        self._processes = []
        for number, noted in enumerate(self._noted):
            settings = {
                "port": setup.port,
                "workload": name,
                "connections": CONNECTIONS,
                "start": len(work.sequence) * number // WORKERS,
                "noted": str(noted),
            }
            command = [sys.executable, str(_LOAD), json.dumps(settings)]
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
            )
        for process in self._processes:
            self._said(process)

    def run(self, seconds: float) -> int:
        """Ask for so long; returns how many requests were answered."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n".encode())
            process.stdin.flush()
        return sum(self._said(process)["requests"] for process in self._processes)

    def reads(self) -> list[tuple[int, int]]:
        """Start and number of every read of the watched key in the last run."""
        found: list[tuple[int, int]] = []
        for path in self._noted:
            cells = array("q")
            cells.frombytes(path.read_bytes())
            found += zip(cells[::2], cells[1::2], strict=True)
        return found

    @property
    def pids(self) -> list[int]:
        """Process ids."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.communicate()

    @staticmethod
    def _said(process: "subprocess.Popen[bytes]") -> dict[str, int]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("a load generator ended: a reply was not what it had to be")
        said: dict[str, int] = json.loads(line)
        return said


class Bench:
    """Runs setups, and keeps their numbers of writes growing."""

    def __init__(self, name: str, work: Workload, folder: Path) -> None:
        self._name, self._work, self._folder = name, work, folder
        self._last = 0

    def run(self, setup: Setup, warm_s: float, seconds: float) -> Run:
        """Warm up, then measure."""
        generators = Generators(setup, self._name, self._work, self._folder)
        writer = Writer(setup, self._work, self._last)
        with contextlib.closing(generators):
            writer.start()
            generators.run(warm_s)
            pids = {kind: setup.pids(kind) for kind in ("servers", "proxies")}
            before, busy = _spent(pids), machine_busy_s()
            asked = sum(map(gets, setup.servers))
            own, began = _total_ns(generators.pids), time.monotonic()
            requests = generators.run(seconds)
            took = time.monotonic() - began
            spent = {kind: ns - before[kind] for kind, ns in _spent(pids).items()}
            own, busy = _total_ns(generators.pids) - own, machine_busy_s() - busy
            asked = sum(map(gets, setup.servers)) - asked
            self._last = writer.stop()
            if not setup.is_cached and not requests <= asked <= requests * 1.01 + 100:
                raise RuntimeError(f"{setup.name}: {requests} were answered, and servers had {asked}")
            if setup.is_cached and asked >= requests:
                raise RuntimeError(f"{setup.name}: nothing was answered from memory")
            ages = ages_ms(generators.reads(), writer.numbers, writer.acked_ns)
            memory = {kind: sum(map(resident_mib, pids[kind])) for kind in pids}
        stale = [age for age in ages if age > 0]
        return Run(
            requests_per_s=requests / took,
            servers_us=spent["servers"] / 1e3 / requests,
            proxies_us=spent["proxies"] / 1e3 / requests,
            servers_mib=memory["servers"],
            proxies_mib=memory["proxies"],
            oldest_ms=ages[-1],
            p99_ms=ages[int(0.99 * (len(ages) - 1))],
            stale_share=len(stale) / len(ages),
            reads=len(ages),
            others_cores=max(0.0, busy - (own + sum(spent.values())) / 1e9) / took,
        )


def ages_ms(reads: Sequence[tuple[int, int]], numbers: list[int], acked_ns: list[int]) -> list[float]:
    """How old each read was, in order: its start minus the first newer write's acknowledgement, or 0."""
    ages = []
    for started, number in reads:
        newer = bisect.bisect_right(numbers, number)
        age = started - acked_ns[newer] if newer < len(acked_ns) else 0
        ages.append(max(age, 0) / 1e6)
    return sorted(ages) or [0.0]


def gets(server: EmbeddedServer) -> int:
    """GETs that a server has carried out."""
    with server.client() as client:
        found: dict[str, dict[str, int]] = client.info("commandstats")
    return int(found.get("cmdstat_get", {}).get("calls", 0))


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else 0.0


def _spent(pids: dict[str, list[int]]) -> dict[str, int]:
    return {kind: _total_ns(some) for kind, some in pids.items()}


def _total_ns(pids: Sequence[int]) -> int:
    return sum(cpu_ns(pid) for pid in pids)
