"""CPU per request of keyheat's proxy, beside the server itself and other proxies.

    .venv/bin/python benches/proxy.py            the full run, about a quarter of an hour
    .venv/bin/python benches/proxy.py --small    64 B values only, about a minute
    .venv/bin/python benches/proxy.py --only '64 B P1 .*(keyheat|twemproxy)$'
    .venv/bin/python benches/proxy.py --only '64 B P1 uniform' --cores 0,1,0

How it measures and what it refuses to count is told in `benches/README.md`; the code is in
`benches/proxy_bench/`, in reading order: `plan`, `peers`, `measure`, `report`.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

from keyheat.server.binary import find_binary
from keyheat.server.embedded import EmbeddedServer
from keyheat.server.rundir import RunDir
from proxy_bench import install, report
from proxy_bench.install import Program
from proxy_bench.measure import Bench, Patience, Sample, WrongWorkError
from proxy_bench.peers import KEYHEAT, STARTERS, Peer, PeerError, start_bare, start_forwarder, start_keyheat
from proxy_bench.plan import BARE, FORWARDER, ORDER, REQUESTS, TARGETS, Case, size_name

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "benches" / "results"
PAIRS: Final = 16
PAIRS_SMALL: Final = 4
# Rounds of what no target is about.
ROUNDS_BESIDE: Final = 4
SMALL_DIVISOR: Final = 4
SMALL_BYTES: Final = 64
# How long a run waits in all for others to leave the machine alone.
PATIENCE_S: Final = 420.0
PATIENCE_SMALL_S: Final = 15.0
# Requests come in whole pipelines of all clients.
_MULTIPLE: Final = 800


@dataclass(frozen=True)
class Effort:
    """How often a case is measured, and with how many requests each time."""

    rounds: int
    requests: int


def main() -> int:
    """Run the benchmark; 1 if a measurement was not what it should have been."""
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    cases = _cases(options)
    if not cases:
        print(f"--only {options.only!r} matches nothing", file=sys.stderr)
        return 2
    programs, missing = install.find_all(ROOT / "target")
    for line in missing:
        print(line, file=sys.stderr)
    if "redis-benchmark" not in programs:
        print("without redis-benchmark there is no load: nothing was measured", file=sys.stderr)
        return 0
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(EmbeddedServer(binary=find_binary(prefer_wheel=True)))
            about = report.surroundings(server, programs)
            peers = _start_peers(stack, server, programs, {case.peer for case in cases}, missing)
            if options.cores:
                _pin([peer.pid for peer in peers.values()], server.pid, *options.cores)
                about["pinned to cores (proxy, server, clients)"] = ", ".join(map(str, options.cores))
            bench = Bench(server, programs["redis-benchmark"])
            patience = Patience(PATIENCE_SMALL_S if options.small else PATIENCE_S)
            samples = _run(bench, peers, cases, patience, wrong)
        except KeyboardInterrupt:
            print("interrupted: nothing is written, everything is stopped", file=sys.stderr)
            return 130
    text = report.write(
        options.results, command=_command(options), about=about, samples=samples, notes=[*missing, *wrong]
    )
    print(text)
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="64 B only, fewer requests and pairs")
    parser.add_argument(
        "--pairs", type=int, help=f"neighbouring pairs per target (default {PAIRS}, small {PAIRS_SMALL})"
    )
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="only cases such as '64 B P16 uniform keyheat'"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to write to")
    parser.add_argument(
        "--cores",
        type=_cores,
        metavar="PROXY,SERVER,CLIENTS",
        help="pin each to one core: what a request costs depends on who shares one",
    )
    options = parser.parse_args()
    if options.pairs is not None and options.pairs < 1:
        parser.error("--pairs: 1 or more")
    return options


def _cores(text: str) -> tuple[int, int, int]:
    try:
        proxy, server, clients = map(int, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError("three numbers of cores, such as 0,1,0") from error
    if missing := {proxy, server, clients} - os.sched_getaffinity(0):
        raise argparse.ArgumentTypeError(f"there is no core {', '.join(map(str, sorted(missing)))} here")
    return proxy, server, clients


def _pin(proxies: list[int], server_pid: int, proxy: int, server: int, clients: int) -> None:
    """Pin processes, all their threads, and what this process starts from now on."""
    for pid, core in [*((pid, proxy) for pid in proxies), (server_pid, server), (os.getpid(), clients)]:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def _command(options: argparse.Namespace) -> str:
    words = [".venv/bin/python benches/proxy.py", "--small" if options.small else ""]
    words += [
        f"--pairs {options.pairs}" if options.pairs else "",
        f"--only '{options.only}'" if options.only else "",
        f"--cores {','.join(map(str, options.cores))}" if options.cores else "",
    ]
    return " ".join(filter(None, words))


def _cases(options: argparse.Namespace) -> dict[Case, Effort]:
    """Every case with what is spent on it, in the order of a round."""
    pairs = options.pairs or (PAIRS_SMALL if options.small else PAIRS)
    targeted = {case for target in TARGETS for case in target.cases()}
    cases: dict[Case, Effort] = {}
    for (size, pipeline), requests in REQUESTS.items():
        if options.small and size != SMALL_BYTES:
            continue
        each = requests // SMALL_DIVISOR if options.small else requests
        for workload, order in ORDER.items():
            for peer in order:
                case = Case(size, pipeline, workload, peer)
                if re.search(options.only, str(case)):
                    rounds = pairs if case in targeted else min(pairs, ROUNDS_BESIDE)
                    cases[case] = Effort(rounds, each // _MULTIPLE * _MULTIPLE)
    return cases


def _start_peers(
    stack: contextlib.ExitStack,
    server: EmbeddedServer,
    programs: dict[str, Program],
    wanted: set[str],
    missing: list[str],
) -> dict[str, Peer]:
    """The proxies that can be had; what does not start is named in `missing`."""
    folder = stack.enter_context(RunDir()).path
    peers: dict[str, Peer] = {}
    makers: dict[str, Callable[[], Peer]] = {
        BARE: lambda: start_bare(ROOT / "target", folder),
        FORWARDER: lambda: start_forwarder(ROOT / "target", server.port, folder),
    }
    for name, (program, start) in STARTERS.items():
        if program in programs:
            makers[name] = partial(start, programs[program], server.port, folder)
    for name, make in makers.items():
        if name not in wanted:
            continue
        try:
            peers[name] = make()
        except PeerError as error:
            print(error, file=sys.stderr)
            missing.append(str(error))
        else:
            stack.callback(peers[name].close)
    for name in KEYHEAT:
        if name in wanted:
            peers[name] = start_keyheat(name, server.port, folder)
            stack.callback(peers[name].close)
    return peers


def _run(
    bench: Bench, peers: dict[str, Peer], cases: dict[Case, Effort], patience: Patience, wrong: list[str]
) -> report.Samples:
    """All rounds: cell by cell, and in a cell every case once per round, there and back again."""
    samples: report.Samples = {case: {} for case in cases}
    runs = sum(effort.rounds for case, effort in cases.items() if case.peer in {"server", *peers})
    done, start = 0, time.monotonic()
    for size in dict.fromkeys(case.value_bytes for case in cases):
        _say(f"filling the server with values of {size_name(size)}")
        bench.fill(size)
        for pipeline in dict.fromkeys(case.pipeline for case in cases if case.value_bytes == size):
            cell = [case for case in cases if (case.value_bytes, case.pipeline) == (size, pipeline)]
            cell = [case for case in cell if case.peer in {"server", *peers}]
            for number in range(max((cases[case].rounds for case in cell), default=0)):
                turn = [case for case in cell if number < cases[case].rounds]
                for case in turn if number % 2 == 0 else reversed(turn):
                    try:
                        sample = _measure(bench, case, peers.get(case.peer), cases[case].requests, patience)
                    except WrongWorkError as error:
                        wrong.append(str(error))
                        _say(f"WRONG {error}")
                        continue
                    finally:
                        done += 1
                    samples[case][number] = sample
                    left = (time.monotonic() - start) / done * (runs - done)
                    _say(f"[{done}/{runs}, {left / 60:.0f} min left] {case}: {sample.own_us:.2f} µs")
    return samples


def _measure(bench: Bench, case: Case, peer: Peer | None, requests: int, patience: Patience) -> Sample:
    """Measure when the machine is calm, and again if it did not stay so, as long as patience lasts."""
    while True:
        patience.wait()
        sample = bench.measure(case, peer, requests)
        if not patience.may_repeat(sample.others_share, sample.seconds):
            return sample


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
