"""What the proxy adds to the 99th percentile of a forwarded GET, over a relay that only copies bytes.

    .venv/bin/python benches/latency.py             about two minutes
    .venv/bin/python benches/latency.py --small     half a minute

Open loop: requests go out at a fixed rate, half of what relay and proxy both can do (measured first, by 50
connections that ask again as soon as they are answered), and the time of each is counted from the moment it
was to be sent. Relay and proxy take turns before the same server; what a pair differs by is what the proxy
adds. 64 B, uniform over 100,000 keys, no pipelining.

The load generator has a core to itself, and everybody else the others: waiting for a core that the generator
has would be measured otherwise. A pair during which other processes took more than a tenth of the machine is
run again, for a few minutes in all: a 99th percentile of a busy machine is that of its scheduler.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from keyheat.server.binary import find_binary
from keyheat.server.embedded import EmbeddedServer
from keyheat.server.rundir import RunDir
from proxy_bench.compiled import compile_c
from proxy_bench.measure import CALM, Patience, children_ns, cpu_ns, machine_busy_s, uniform_key
from proxy_bench.peers import Peer, PeerError, start_keyheat, start_relay
from proxy_bench.plan import CLIENTS, UNIFORM_KEYS
from proxy_bench.report import interval95

ROOT: Final = Path(__file__).resolve().parent.parent
TARGET_US: Final = 150.0
VALUE_BYTES: Final = 64
PATIENCE_S: Final = 180.0
PATIENCE_SMALL_S: Final = 15.0
_BATCH: Final = 2_000


class Bench:
    """The load generator, and who is asked."""

    def __init__(self, program: Path, seconds: float) -> None:
        self._program = program
        self._seconds = seconds

    def ask(self, peer: Peer, rate: float) -> dict[str, float]:
        """One run; rate 0 asks as fast as it is answered."""
        words = [peer.port, CLIENTS, f"{rate:.0f}", self._seconds, UNIFORM_KEYS, VALUE_BYTES]
        done = subprocess.run(
            [str(self._program), *map(str, words)], capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise PeerError(f"{peer.name} at {rate:.0f} requests/s: {done.stderr.strip() or done.returncode}")
        told: dict[str, float] = json.loads(done.stdout)
        return told


def main() -> int:
    """Measure and write; 1 if it could not be measured."""
    options = _options()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(binary=find_binary(prefer_wheel=True)))
        folder = stack.enter_context(RunDir()).path
        _fill(server)
        try:
            bench = Bench(compile_c("openloop", ROOT / "target"), options.seconds)
            relay = start_relay(ROOT / "target", server.port, folder)
            stack.callback(relay.close)
            proxy = start_keyheat("keyheat", server.port, folder)
            stack.callback(proxy.close)
            _part(server.pid, relay.pid, proxy.pid)
            patience = Patience(PATIENCE_SMALL_S if options.small else PATIENCE_S)
            found = _run(bench, server, (relay, proxy), options.pairs, patience)
        except (OSError, PeerError) as error:
            print(f"not measured: {error}", file=sys.stderr)
            return 1
    text = _report(found, options)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "latency.md").write_text(text)
    (options.results / "latency.json").write_text(json.dumps(found, indent=1) + "\n")
    print(text)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="fewer and shorter pairs")
    parser.add_argument("--pairs", type=int, help="of relay and proxy (16, small 6)")
    parser.add_argument("--seconds", type=float, help="of each run (2.5, small 1)")
    parser.add_argument("--results", type=Path, default=ROOT / "benches" / "results", help="where to write")
    options = parser.parse_args()
    options.pairs = options.pairs or (6 if options.small else 16)
    options.seconds = options.seconds or (1.0 if options.small else 2.5)
    return options


def _fill(server: EmbeddedServer) -> None:
    with server.client() as client:
        for first in range(0, UNIFORM_KEYS, _BATCH):
            numbers = range(first, first + _BATCH)
            client.mset({uniform_key(number): b"x" * VALUE_BYTES for number in numbers})


def _part(*pids: int) -> None:
    """Give this process, and so the load generators, one core, and all threads of the others the rest."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    os.sched_setaffinity(0, cores[:1])
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores[1:])


def _run(
    bench: Bench, server: EmbeddedServer, peers: tuple[Peer, Peer], pairs: int, patience: Patience
) -> dict[str, Any]:
    most = [statistics.median(bench.ask(peer, 0)["per_s"] for _ in range(3)) for peer in peers]
    runs: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    pids = [server.pid, *(peer.pid for peer in peers)]
    others: list[float] = []
    while len(others) < pairs:
        patience.wait()
        began, busy, own = time.monotonic(), machine_busy_s(), _own_s(pids)
        order = peers if len(others) % 2 == 0 else peers[::-1]
        pair = {peer.name: bench.ask(peer, min(most) / 2) for peer in order}
        seconds = time.monotonic() - began
        spent_s = machine_busy_s() - busy - (_own_s(pids) - own)
        others.append(max(0.0, spent_s) / seconds / (os.cpu_count() or 1))
        print(f"[{len(others)}/{pairs}] others {others[-1]:.0%} {pair}", file=sys.stderr, flush=True)
        if patience.may_repeat(others[-1], seconds):
            others.pop()
            continue
        for name, told in pair.items():
            runs[name].append(told)
    return {
        "saturation_per_s": min(most),
        "rate_per_s": min(most) / 2,
        "load": os.getloadavg()[0],
        "others": others,
        "runs": runs,
    }


def _own_s(pids: list[int]) -> float:
    """CPU time of what is measured and of the load generators that have ended."""
    return (sum(map(cpu_ns, pids)) + children_ns()) / 1e9


def _report(found: dict[str, Any], options: argparse.Namespace) -> str:
    runs = found["runs"]
    when, load = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC", f"load average {found['load']:.1f}"
    rate, saturation = f"{found['rate_per_s']:,.0f}", f"{found['saturation_per_s']:,.0f}"
    lines = [
        "# What the proxy adds to a forwarded GET",
        "",
        "`.venv/bin/python benches/latency.py"
        + (" --small`" if options.small else "`")
        + f", {when}, {os.cpu_count()} cores, {load}",
        "",
        f"Open loop at {rate} requests/s, half of what both can do ({saturation});",
        f"{options.pairs} pairs of {options.seconds:g} s; µs from the intended moment of sending; medians.",
        "",
        "| | p50 | p99 | p99.9 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, some in runs.items():
        middles = [statistics.median(run[f"{part}_us"] for run in some) for part in ("p50", "p99", "p999")]
        lines.append(f"| {name} | " + " | ".join(f"{each:.0f}" for each in middles) + " |")
    lines += ["", "| added by the proxy, µs | median of pairs | its 95 % interval | target | |"]
    lines += ["| --- | ---: | ---: | ---: | --- |"]
    for part in ("p50", "p99"):
        added = [
            own[f"{part}_us"] - other[f"{part}_us"]
            for own, other in zip(runs["keyheat"], runs["relay"], strict=True)
        ]
        middle, (low, high) = statistics.median(added), interval95(added)
        verdict = "" if part == "p50" else "PASS" if middle <= TARGET_US else "MISS"
        bound = "" if part == "p50" else f"≤ {TARGET_US:.0f}"
        lines.append(f"| {part} | {middle:.0f} | {low:.0f} to {high:.0f} | {bound} | {verdict} |")
    disturbed = sum(share > CALM for share in found["others"])
    lines += [
        "",
        f"In {disturbed} of {len(found['others'])} pairs others took more than {CALM:.0%} of the machine.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
