"""Replicas or a cache: the same flash sale and the same trace on both, by CPU, memory, freshness and cost.

    .venv/bin/python benches/compare.py             about six minutes; writes docs/compare.md and its chart
    .venv/bin/python benches/compare.py --small     under a minute, written to target/bench-small

Compared: one server; the same behind a proxy that only forwards; reads dealt out to 1, 2 and 4 replicas; and
the hot cache on 1, 2 and 4 proxies that share an address. `compare_bench/` has the code, in reading order:
`load`, `setups`, `runs`, `chart`.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from compare_bench import chart, setups
from compare_bench.load import PIPELINE, SALE_SHARE, Workload, workload
from compare_bench.runs import CONNECTIONS, WRITES_PER_S, Bench, Run
from keyheat.server.rundir import RunDir

ROOT: Final = Path(__file__).resolve().parent.parent
TITLES: Final = {"sale": "Flash sale", "trace": "Trace"}
Runs = dict[str, dict[str, list[Run]]]

_INTRO: Final = """\
# Replicas or a cache?

Reads that are too many for one server can be dealt out to replicas, or hot keys can be answered before
they reach any. This page has both under the same load. It is written by
`.venv/bin/python benches/compare.py`.
"""

_HOW: Final = """\
## How it was measured

Two processes with {connections} connections each ask in pipelines of {pipeline}, as fast as they are
answered. *Trace* is the order of reads of a minute of Twitter's cluster 52 (`keyheat demo` plays the
same); in the *flash sale* {share:.0%} of the reads are of one key more. A writer at the primary
rewrites the sale's key (in the trace: its hottest) {writes:g} times a second, past the proxies. The age
of a read is its start minus the moment at which the first newer write had been acknowledged; 0, and not
stale, where nothing newer was. Proxies have one shard each; replicas are read with `read_from =
"prefer-replica"`, the cache off; the bound of the cache is 100 ms, its default.

Each setup was run {rounds} times for {seconds:g} s after {warm:g} s of warming up, in rounds that go
there and back; figures are medians, ages the worst of all runs. ± is the median distance of a run's CPU
per request from their median. {cores} cores, load average {load}; others took {others:.2f} cores in the
median run.

**Read CPU per request, not requests per second.** Everything here shares {cores} cores with the load
generators, so throughput ends where the machine does and says who got it. CPU per request is what a
request costs wherever it runs; a deployment with a machine for each process has the cores of all.

**Cost** is processes and the memory of all of them: each replica holds all values once more (few here), each
proxy what is hot, and here a Python interpreter.
"""

_READING: Final = """\
## Reading it

- A replica makes no read cheaper: each is forwarded, and costs a server as much as before. What
  replicas add is cores, and with each the whole of the values in memory once more, and a stream of
  writes.
- The cache takes reads of hot keys off the servers; what is left of their CPU is the reads of all other
  keys. In the trace fewer reads are of hot keys, so more are forwarded, and cost proxy and server.
- More processes for the same load means fewer requests at each waking, so CPU per request grows with
  their number, for replicas as for proxies. Each proxy counts and fills on its own.
- What replicas answer is behind their primary by its replication; what the cache answers by its
  invalidations, and is never older than the bound. Both are small on one machine, where there is no
  network.
"""


def main() -> int:
    """Measure, and write the page."""
    options = _options()
    load = f"{os.getloadavg()[0]:.1f}"
    runs: Runs = {}
    for name in TITLES:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(RunDir()).path
            work = workload(name)
            _say(f"{name}: starting servers and proxies with {len(work.keys):,} keys")
            runs[name] = _measure(options, name, work, setups.start(stack, folder, work), folder)
    folder = options.results
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.md").write_text(_page(options, runs, load))
    (folder / "compare.svg").write_text(
        chart.draw({TITLES[name]: _bars(some) for name, some in runs.items()})
    )
    document = {
        name: {setup: [asdict(run) for run in each] for setup, each in some.items()}
        for name, some in runs.items()
    }
    _results = ROOT / "benches" / "results" if options.results == ROOT / "docs" else options.results
    (_results / "compare.json").write_text(json.dumps(document, indent=1) + "\n")
    print((folder / "compare.md").read_text())
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="one round of a second")
    parser.add_argument("--rounds", type=int, default=7, help="how often each setup is run (7)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a run (2)")
    parser.add_argument("--results", type=Path, help="the folder to write to (docs; small: another)")
    options = parser.parse_args()
    options.warm = 1.0
    if options.small:
        options.rounds, options.seconds = 1, 1.0
    options.results = options.results or ROOT / ("target/bench-small" if options.small else "docs")
    return options


def _measure(
    options: argparse.Namespace, name: str, work: Workload, some: list[setups.Setup], folder: Path
) -> dict[str, list[Run]]:
    bench = Bench(name, work, folder)
    runs: dict[str, list[Run]] = {setup.name: [] for setup in some}
    for number in range(options.rounds):
        for setup in some if number % 2 == 0 else reversed(some):
            run = bench.run(setup, options.warm, options.seconds)
            runs[setup.name].append(run)
            _say(
                f"{name} {number + 1}/{options.rounds} {setup.name}: "
                f"{run.servers_us:.2f} + {run.proxies_us:.2f} µs, {run.requests_per_s:,.0f}/s, "
                f"oldest {run.oldest_ms:.1f} ms, others {run.others_cores:.2f} cores"
            )
    return runs


def _middle(runs: Sequence[Run], what: Callable[[Run], float]) -> float:
    return statistics.median(map(what, runs))


def _table(runs: dict[str, list[Run]]) -> list[str]:
    lines = [
        "| setup | CPU µs per request | ± | servers | proxies | requests/s | stale reads | p99, ms "
        "| oldest, ms | processes | memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, some in runs.items():
        totals = [run.servers_us + run.proxies_us for run in some]
        middle = statistics.median(totals)
        off = statistics.median(abs(total - middle) for total in totals)
        servers, proxies = (
            _middle(some, lambda run: run.servers_us),
            _middle(some, lambda run: run.proxies_us),
        )
        memory = _middle(some, lambda run: run.servers_mib + run.proxies_mib)
        lines.append(
            f"| {name} | {servers + proxies:.2f} | {off / middle:.0%} | {servers:.2f} | {proxies:.2f} "
            f"| {_middle(some, lambda run: run.requests_per_s):,.0f} "
            f"| {_middle(some, lambda run: run.stale_share):.2%} "
            f"| {_middle(some, lambda run: run.p99_ms):.1f} "
            f"| {max(run.oldest_ms for run in some):.1f} | {_processes(name)} | {memory:,.0f} |"
        )
    return lines


def _processes(name: str) -> str:
    words = name.split()
    if name == "server alone":
        return "1"
    if name == "proxy, no cache":
        return "2"
    return str(int(words[0]) + 2 if words[0].isdigit() else int(words[2]) + 1)


def _bars(runs: dict[str, list[Run]]) -> list[chart.Bar]:
    return [
        chart.Bar(
            name,
            (
                (_middle(some, lambda run: run.servers_us), _middle(some, lambda run: run.proxies_us)),
                (_middle(some, lambda run: run.servers_mib), _middle(some, lambda run: run.proxies_mib)),
                (max(run.oldest_ms for run in some),),
            ),
        )
        for name, some in runs.items()
    ]


def _page(options: argparse.Namespace, runs: Runs, load: str) -> str:
    every = [run for some in runs.values() for each in some.values() for run in each]
    how = _HOW.format(
        connections=CONNECTIONS,
        pipeline=PIPELINE,
        share=SALE_SHARE,
        writes=WRITES_PER_S,
        rounds=options.rounds,
        seconds=options.seconds,
        warm=options.warm,
        cores=os.cpu_count(),
        load=load,
        others=_middle(every, lambda run: run.others_cores),
    )
    date = f"Measured {dt.datetime.now(dt.UTC):%Y-%m-%d}."
    lines = [_INTRO, date, "", "![the tables below as bars](compare.svg)", ""]
    for name, some in runs.items():
        lines += [f"## {TITLES[name]}", "", *_table(some), ""]
    return "\n".join([*lines, _READING, how])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
