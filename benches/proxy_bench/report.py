"""Medians, ratios of neighbours, and the files they are written to."""

import datetime as dt
import json
import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from keyheat._keyheat import version as keyheat_version
from keyheat.server.embedded import EmbeddedServer
from proxy_bench.install import Program
from proxy_bench.measure import CALM, Sample
from proxy_bench.peers import KEYHEAT
from proxy_bench.plan import CLIENTS, ORDER, REQUESTS, TARGETS, UNIFORM_KEYS, Case, Target, size_name

_VERSION_FLAGS: Final = {
    "nutcracker": "-V",
    "haproxy": "-v",
    "redis-benchmark": "--version",
    "envoy": "--version",
}

# Probability left out at either end of an interval.
_TAIL: Final = 0.025

# Each case's samples by round; a failed one is absent.
Samples = dict[Case, dict[int, Sample]]


@dataclass(frozen=True)
class Ratio:
    """A target and the ratios of its neighbouring pairs."""

    target: Target
    ratios: list[float]

    @property
    def median(self) -> float:
        """The middle of the pairs."""
        return statistics.median(self.ratios)

    def quantile(self, part: float) -> float:
        """The value that `part` of the pairs do not pass."""
        return sorted(self.ratios)[round(part * (len(self.ratios) - 1))]

    def interval(self) -> tuple[float, float]:
        """Where the true median lies with 95 % confidence."""
        return interval95(self.ratios)

    @property
    def verdict(self) -> str:
        """PASS or MISS, by the median; nothing where there is no target."""
        if self.target.bound is None:
            return ""
        return "PASS" if self.median <= self.target.bound else "MISS"


def interval95(values: Sequence[float]) -> tuple[float, float]:
    """Where the true median lies with 95 % confidence, from the order of the values alone.

    The k-th smallest and the k-th largest of n bound it with probability 1 - 2·P(Bin(n, ½) < k);
    below six values no k is enough, and these are the smallest and the largest.
    """
    ordered, count = sorted(values), len(values)
    below, rank = 0.0, 0
    while (below := below + math.comb(count, rank) / 2**count) <= _TAIL and rank < count // 2:
        rank += 1
    index = max(rank - 1, 0)
    return ordered[index], ordered[-1 - index]


def ratios(samples: Samples) -> list[Ratio]:
    """The ratios that this run can tell."""
    found = []
    for target in TARGETS:
        above, below = (samples.get(case, {}) for case in target.cases())
        pairs = [above[n].own_us / below[n].own_us for n in sorted(above.keys() & below.keys())]
        if pairs:
            found.append(Ratio(target, pairs))
    return found


def ratio_table(found: Sequence[Ratio]) -> list[str]:
    """The targets as Markdown."""
    lines = [
        "| CPU per request | values | pipeline | median | its 95 % interval | 10 % to 90 % of pairs | pairs "
        "| target | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for each in found:
        target = each.target
        low, high = each.interval()
        bound = "" if target.bound is None else f"≤ {target.bound:.2f}"
        lines.append(
            f"| {target.title} | {size_name(target.value_bytes)} | {target.pipeline} "
            f"| {each.median:.3f} | {low:.3f} to {high:.3f} "
            f"| {each.quantile(0.1):.3f} to {each.quantile(0.9):.3f} | {len(each.ratios)} "
            f"| {bound} | {each.verdict} |"
        )
    return lines


def case_table(samples: Samples) -> list[str]:
    """Medians of every case as Markdown."""
    lines: list[str] = []
    for size, pipeline in REQUESTS:
        for workload, order in ORDER.items():
            rows = [
                _case_row(case, list(rounds.values()))
                for name in order
                if (rounds := samples.get(case := Case(size, pipeline, workload, name), {}))
            ]
            if rows:
                keys = "one hot key" if workload == "hot" else f"uniform over {UNIFORM_KEYS:,} keys"
                lines += [
                    f"### {size_name(size)}, pipeline {pipeline}, {keys}",
                    "",
                    "| peer | its CPU, µs | server's, µs | both, µs | requests/s | answered locally | runs |",
                    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
                    *rows,
                    "",
                ]
    return lines


def _case_row(case: Case, runs: Sequence[Sample]) -> str:
    def middle(values: Sequence[float]) -> float:
        return statistics.median(values)

    own = "" if case.peer == "server" else f"{middle([s.proxy_us for s in runs]):.2f}"
    shares = [s.local_share for s in runs if s.local_share is not None]
    # The worst run, cut and not rounded: 99.97 % must not read as 100 %.
    share = f"{int(min(shares) * 10_000) / 100:.2f} %" if shares else ""
    return (
        f"| {case.peer} | {own} | {middle([s.server_us for s in runs]):.2f} "
        f"| {middle([s.proxy_us + s.server_us for s in runs]):.2f} "
        f"| {middle([s.requests / s.seconds for s in runs]):,.0f} | {share} | {len(runs)} |"
    )


def surroundings(server: EmbeddedServer, programs: dict[str, Program]) -> dict[str, str]:
    """Date, machine and versions."""
    with server.client(decode_responses=True) as client:
        info: dict[str, object] = client.info("server")
    name = info.get("server_name", "redis")
    versions = {f"{name}-server": str(info.get(f"{name}_version", info.get("redis_version")))}
    for program, found in sorted(programs.items()):
        done = subprocess.run(
            [found.path, _VERSION_FLAGS[program]],
            capture_output=True,
            text=True,
            env=found.environment(),
            check=False,
        )
        number = re.search(r"\b\d+\.\d+\.\d+[\w+.~-]*", done.stdout + done.stderr)
        versions[program] = number.group() if number else "unknown"
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "kernel": platform.release(),
        "keyheat": _keyheat(),
        **versions,
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


def _keyheat() -> str:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return f"{keyheat_version()} {commit}".strip()


def _calm(samples: Samples) -> str:
    others = sorted(run.others_share for rounds in samples.values() for run in rounds.values())
    if not others:
        return "Nothing was measured."
    busiest = others[round(0.9 * (len(others) - 1))]
    disturbed = sum(share > CALM for share in others)
    return (
        f"Other processes took {statistics.median(others):.1%} of the machine in the median run and "
        f"{busiest:.1%} in the busiest tenth; more than {CALM:.0%} in {disturbed} of {len(others)} runs."
    )


def write(
    folder: Path,
    *,
    command: str,
    about: dict[str, str],
    samples: Samples,
    notes: Sequence[str],
) -> str:
    """Write `proxy.md` and `proxy.json`; returns the Markdown."""
    found = ratios(samples)
    settings = "; ".join(f"{name}: {json.dumps(given)}" for name, given in KEYHEAT.items() if given)
    lines = [
        "# Benchmark of the proxy",
        "",
        f"`{command}`",
        "",
        " · ".join(f"{name} {value}" for name, value in about.items()),
        "",
        f"CPU µs per GET, user and system time of all threads of a process; {CLIENTS} clients of one",
        "redis-benchmark; medians. A ratio is that of two runs made side by side in one round; its",
        "median over all such pairs is held to the target.",
        "",
        *ratio_table(found),
        "",
        f"keyheat runs with its defaults (one shard per core but one), or over them: {settings}.",
        "",
        _calm(samples),
        "",
        *case_table(samples),
        *[f"- {note}" for note in notes],
    ]
    text = "\n".join(lines).rstrip() + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "proxy.md").write_text(text)
    document = {
        "command": command,
        "about": about,
        "notes": list(notes),
        "ratios": [
            {
                **asdict(each.target),
                "median": each.median,
                "interval95": each.interval(),
                "p10": each.quantile(0.1),
                "p90": each.quantile(0.9),
                "pairs": each.ratios,
                "verdict": each.verdict or None,
            }
            for each in found
        ],
        "cases": [
            {**asdict(case), "runs": [{"round": n, **asdict(run)} for n, run in sorted(rounds.items())]}
            for case, rounds in samples.items()
            if rounds
        ],
    }
    (folder / "proxy.json").write_text(json.dumps(document, indent=1) + "\n")
    return text
