"""One measurement: requests sent, CPU time spent, and proof that it was the right work.

CPU time is the kernel's clock of the whole process (`clock_getcpuclockid`): user and system time of
all its threads, those that have ended included, in nanoseconds. `/proc/PID/stat` has the same sum in
ticks of 10 ms. Where the kernel runs the network stack on behalf of a send, the sender pays, as in
production.
"""

import os
import re
import resource
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyheat.server.embedded import HOST, EmbeddedServer
from proxy_bench.install import Program
from proxy_bench.peers import Peer, read, store
from proxy_bench.plan import CLIENTS, HOT_KEY, LOCAL_SHARE_MIN, UNIFORM_KEYS, Case

if TYPE_CHECKING:
    from redis import Redis

_CPUCLOCK_SCHED: Final = 2
_TIMEOUT_S: Final = 120
# Part of the machine that others may take before a measurement waits or is made again.
CALM: Final = 0.1
_LOOK_S: Final = 0.15
_PAUSE_S: Final = 0.5
_WARM_UPS_MAX: Final = 5
_FILL_BATCH_BYTES: Final = 4 << 20


class WrongWorkError(Exception):
    """A measurement that measured something else: errors, misses, or the wrong path."""


@dataclass(frozen=True)
class Sample:
    """What one measurement gave: microseconds of CPU per request, and how calm it was.

    `others_share` is the part of the machine that went to processes that are none of the three.
    """

    requests: int
    proxy_us: float
    server_us: float
    generator_us: float
    seconds: float
    others_share: float
    local_share: float | None

    @property
    def own_us(self) -> float:
        """What the measured peer itself spent: the proxy, or the server where there is none."""
        return self.proxy_us or self.server_us


def cpu_ns(pid: int) -> int:
    """User and system time of a process so far."""
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)


def uniform_key(number: int) -> str:
    """The key that redis-benchmark makes of `key:__rand_int__`."""
    return f"key:{number:012d}"


class Bench:
    """The server, the load generator, and how a case is measured with them."""

    def __init__(self, server: EmbeddedServer, generator: Program) -> None:
        self._server = server
        self._generator = generator
        self._client: Redis = server.client(decode_responses=True)

    def fill(self, value_bytes: int) -> None:
        """Replace everything on the server by values of one size."""
        value = b"x" * value_bytes
        batch = max(1, min(2_000, _FILL_BATCH_BYTES // value_bytes))
        self._client.flushall()
        self._client.set(HOT_KEY, value)
        for start in range(0, UNIFORM_KEYS, batch):
            numbers = range(start, min(start + batch, UNIFORM_KEYS))
            self._client.mset({uniform_key(number): value for number in numbers})

    def measure(self, case: Case, peer: Peer | None, requests: int) -> Sample:
        """Warm up, then measure.

        Raises:
            WrongWorkError: A request was not answered with its value, or not by whom it should be.
        """
        port = peer.port if peer else self._server.port
        if case.is_bare:
            store(port, HOT_KEY, b"x" * case.value_bytes)
        self._check_value(case, port)
        self._warm_up(case, peer, requests // 3)
        before, own_before = self._counters(), peer.counters() if peer else {}
        spent = [cpu_ns(self._server.pid), cpu_ns(peer.pid) if peer else 0, children_ns()]
        start, busy = time.monotonic(), machine_busy_s()
        self._send(case, port, requests)
        seconds, busy = time.monotonic() - start, machine_busy_s() - busy
        spent = [
            after - then
            for after, then in zip(
                [cpu_ns(self._server.pid), cpu_ns(peer.pid) if peer else 0, children_ns()],
                spent,
                strict=True,
            )
        ]
        after, own_after = self._counters(), peer.counters() if peer else {}
        share = _local_share(own_before, own_after, requests)
        self._check_work(case, requests, _difference(before, after), share)
        self._check_value(case, port)
        server_us, proxy_us, generator_us = (ns / 1_000 / requests for ns in spent)
        others = max(0.0, busy - sum(spent) / 1e9) / (seconds * (os.cpu_count() or 1))
        return Sample(requests, proxy_us, server_us, generator_us, seconds, others, share)

    def _warm_up(self, case: Case, peer: Peer | None, requests: int) -> None:
        for _ in range(_WARM_UPS_MAX):
            before = peer.counters() if peer else {}
            self._send(case, peer.port if peer else self._server.port, requests)
            if not case.is_cached or peer is None:
                return
            if (_local_share(before, peer.counters(), requests) or 0.0) >= LOCAL_SHARE_MIN:
                return

    def _send(self, case: Case, port: int, requests: int) -> None:
        command = [self._generator.path, "-h", HOST, "-p", str(port), "-c", str(CLIENTS), "-e", "--csv"]
        command += ["-n", str(requests), "-P", str(case.pipeline)]
        if case.workload == "hot":
            command += ["GET", HOT_KEY]
        else:
            command += ["-r", str(UNIFORM_KEYS), "GET", "key:__rand_int__"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=self._generator.environment(),
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise WrongWorkError(
                f"{case}: redis-benchmark ended with {done.returncode}: {done.stderr[-200:]}"
            )
        if errors := re.findall(r"Error from server.*", done.stdout + done.stderr):
            raise WrongWorkError(f"{case}: {errors[0]}")

    def _counters(self) -> dict[str, int]:
        """What the server says it did: GETs, keys found and not found, errors."""
        info: dict[str, dict[str, int]] = self._client.info("commandstats")
        stats: dict[str, int] = self._client.info("stats")
        gets = info.get("cmdstat_get", {})
        return {
            "gets": int(gets.get("calls", 0)),
            "failed": int(gets.get("failed_calls", 0)) + int(gets.get("rejected_calls", 0)),
            "misses": int(stats["keyspace_misses"]),
        }

    def _check_value(self, case: Case, port: int) -> None:
        key = HOT_KEY if case.workload == "hot" else uniform_key(UNIFORM_KEYS - 1)
        try:
            value = read(port, key)
        except OSError as error:
            raise WrongWorkError(f"{case}: {error}") from error
        if value != b"x" * case.value_bytes:
            raise WrongWorkError(f"{case}: {key} did not come back as it was written")

    @staticmethod
    def _check_work(case: Case, requests: int, server: dict[str, int], share: float | None) -> None:
        if server["failed"] or server["misses"]:
            raise WrongWorkError(f"{case}: {server['failed']} failed, {server['misses']} missed")
        forwarded = server["gets"] / requests
        if case.is_cached:
            if share is None or share < LOCAL_SHARE_MIN or forwarded > 1 - LOCAL_SHARE_MIN:
                raise WrongWorkError(f"{case}: local share {share}, and {forwarded:.1%} reached the server")
        elif case.is_bare:
            if forwarded:
                raise WrongWorkError(f"{case}: {forwarded:.1%} reached the server, which it does not know")
        elif share or not 1.0 <= forwarded < 1.01:
            raise WrongWorkError(f"{case}: {forwarded:.1%} reached the server, local share {share}")


class Patience:
    """Waits for a calm machine, for so many seconds in all; then it takes the machine as it is."""

    def __init__(self, seconds: float) -> None:
        self._until_spent = seconds

    def wait(self) -> None:
        """Return when little else runs, or when there is no patience left."""
        while self._until_spent > 0:
            start, busy = time.monotonic(), machine_busy_s()
            time.sleep(_LOOK_S)
            seconds = time.monotonic() - start
            if (machine_busy_s() - busy) / (seconds * (os.cpu_count() or 1)) <= CALM:
                return
            time.sleep(_PAUSE_S)
            self._until_spent -= time.monotonic() - start

    def may_repeat(self, others_share: float, seconds: float) -> bool:
        """Whether a disturbed measurement should be made again; its time is taken off the patience."""
        if others_share <= CALM or self._until_spent <= 0:
            return False
        self._until_spent -= seconds
        return True


def children_ns() -> int:
    """CPU time of the load generators that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


def machine_busy_s() -> float:
    """Seconds that all cores together have not been idle, time stolen by a hypervisor included."""
    fields = [int(word) for word in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = fields
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def _difference(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


def _local_share(before: Mapping[str, int], after: Mapping[str, int], requests: int) -> float | None:
    return (after["local_hits"] - before["local_hits"]) / requests if after else None
