"""Run redis-py's own tests with every client wrapped, or through a proxy, and compare with a run without.

    python -m tests.compat.redis_py_suite --mode sync                  # the baseline
    python -m tests.compat.redis_py_suite --mode sync --wrap           # with keyheat.protect, and compare
    python -m tests.compat.redis_py_suite --mode sync --wrap repeat    # the same, reads asked three times
    python -m tests.compat.redis_py_suite --mode sync --wrap subclass  # the control: an empty subclass
    python -m tests.compat.redis_py_suite --mode sync --wrap -k lock   # some of the tests
    python -m tests.compat.redis_py_suite --mode sync --part 1/3       # a third of them
    python -m tests.compat.redis_py_suite --mode sync --server redis   # Redis, where Valkey is the default
    python -m tests.compat.redis_py_suite --mode sync --through proxy  # the same tests through a proxy

A test that passes unwrapped must pass wrapped, and through the proxy; that is all that is asked, so such a
run needs the baseline of the same mode, server and protocol version, and makes it first if there is none.
What redis-py's tests need and is not here (TLS, modules, a Sentinel …) is left out by `redis_py_skips.toml`;
`--all` runs it nevertheless. Results are kept in `.cache/compat/results`: a `.json` per run, pytest's output
beside it.

A mode takes minutes, most of them asleep; `asyncio-cluster` takes the most, and is best run in parts. The
exit code is 1 if a baseline has failures, if a wrapped run has regressions, and if it did not wrap or never
answered from memory.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from keyheat.server.binary import find_binary
from tests.compat import environment, servers
from tests.compat.environment import CACHE, HERE, ROOT, Environment, redis_binary
from tests.compat.results import End, Run, load_skips, read_records, regressions, skipped
from tests.compat.servers import Server, through_proxy

SKIPS: Final = HERE / "redis_py_skips.toml"
RESULTS: Final = CACHE / "results"
_STANDALONE: Final = "not onlycluster and not redismod and not multidb_integration"
_CLUSTER: Final = "not onlynoncluster and not redismod and not multidb_integration and not fixed_client"
_SYNC: Final = ("tests", "--ignore=tests/test_asyncio", "--ignore=tests/test_scenario")
_ASYNCIO: Final = ("tests/test_asyncio", "--ignore=tests/test_asyncio/test_scenario")


@dataclass(frozen=True)
class Mode:
    """Which of the tests, against what."""

    paths: tuple[str, ...]
    markers: str
    is_cluster: bool


# `fixed_client` marks tests that do not look at the server they are given: once is enough.
MODES: Final = {
    "sync": Mode(_SYNC, _STANDALONE, is_cluster=False),
    "asyncio": Mode(_ASYNCIO, _STANDALONE, is_cluster=False),
    "cluster": Mode(_SYNC, _CLUSTER, is_cluster=True),
    "asyncio-cluster": Mode(_ASYNCIO, _CLUSTER, is_cluster=True),
}
WRAPPERS: Final = ("protect", "repeat", "subclass")
# Not a way to wrap a client: nothing of it is changed, and its server's address is a proxy's.
THROUGH: Final = "proxy"


@dataclass(frozen=True)
class Wanted:
    """One run, as asked for."""

    mode: str
    binary: str
    resp: int | None
    wrap: str | None
    selection: list[str]  # what is passed on to pytest
    is_all: bool  # the listed tests too

    def skips(self, server: Server) -> dict[str, str]:
        """The listed tests that it leaves out, and why."""
        if self.is_all:
            return {}
        return skipped(load_skips(SKIPS), self.mode, server.product, self.resp, self.wrap)

    def path(self, server: Server) -> Path:
        """Where its results are kept: one file for each different question."""
        words = [
            self.mode,
            server.name,
            f"resp{self.resp or '-default'}",
            self.wrap or "unwrapped",
            *(["all"] if self.is_all else []),
            *([f"part-{zlib.crc32(repr(self.selection).encode()):08x}"] if self.selection else []),
        ]
        return RESULTS / ("-".join(words) + ".json")


def execute(wanted: Wanted, suite: Environment) -> tuple[Run, Path]:
    """Start servers, run the tests, keep and return what they found."""
    with (
        servers.running(wanted.binary, is_cluster=MODES[wanted.mode].is_cluster) as own,
        through_proxy(own) if wanted.wrap == THROUGH else nullcontext(own) as server,
    ):
        path = wanted.path(server)
        path.parent.mkdir(parents=True, exist_ok=True)
        records = path.with_suffix(".jsonl")
        records.unlink(missing_ok=True)
        skips = wanted.skips(server)
        log_path = path.with_suffix(".log")
        say(f"{wanted.mode} on {server.name}, wrapped by {wanted.wrap or 'nothing'}: {log_path}")
        started = time.monotonic()
        with log_path.open("w") as log:
            subprocess.run(
                command(wanted, suite, server),
                cwd=suite.tests,
                env=variables(wanted, records, skips),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,  # the records say more than its exit code
            )
        seconds = round(time.monotonic() - started, 1)
    tests, totals, unmatched = read_records(records)
    if not tests:
        raise SystemExit(f"no test ran ({log_path}):\n{log_path.read_text()[-2000:]}")
    records.unlink()
    for name in unmatched:
        say(f"  {SKIPS.name}: no test is called {name}")
    run = Run(
        mode=wanted.mode,
        server=server.name,
        resp=wanted.resp,
        wrap=wanted.wrap,
        selection=wanted.selection,
        seconds=seconds,
        tests=tests,
        left_out=sorted(skips),
        wrapped=totals,
    )
    run.save(path)
    return run, path


def command(wanted: Wanted, suite: Environment, server: Server) -> list[str]:
    """The command line of pytest."""
    mode = MODES[wanted.mode]
    return [
        str(suite.python),
        "-m",
        "pytest",
        *mode.paths,
        f"-m={mode.markers}",
        f"--redis-url={server.url}",
        *([f"--protocol={wanted.resp}"] if wanted.resp else []),
        # Through the proxy a Cluster is one node that owns every slot.
        *(["--redis-cluster-nodes=1"] if wanted.wrap == THROUGH else []),
        "-pkeyheat_compat_record",
        "-pkeyheat_compat_wrap",
        "-v",
        "--tb=short",
        "--disable-warnings",
        *wanted.selection,
    ]


def variables(wanted: Wanted, records: Path, skips: dict[str, str]) -> dict[str, str]:
    """The environment of pytest: ours without what would change its or redis-py's behaviour."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "REDIS", "RE_", "VIRTUAL_ENV"))
    }
    return {
        **ours,
        "PYTHONPATH": os.pathsep.join([str(HERE / "plugins"), str(ROOT / "python")]),
        "KEYHEAT_COMPAT_RECORDS": str(records),
        "KEYHEAT_COMPAT_SKIPS": json.dumps(skips),
        "KEYHEAT_COMPAT_WRAP": "" if wanted.wrap in {None, THROUGH} else str(wanted.wrap),
    }


def baseline(wanted: Wanted, suite: Environment) -> Run:
    """The unwrapped run to compare with: one that is kept, of all tests or the same ones, else a new one."""
    plain = replace(wanted, wrap=None)
    with servers.running(wanted.binary, is_cluster=False) as server:
        paths = [replace(plain, selection=[]).path(server), plain.path(server)]
        left_out = sorted(plain.skips(server))
    for path in paths:
        if path.exists() and (kept := Run.load(path)).left_out == left_out:
            return kept
    run, _ = execute(plain, suite)
    report(run)
    return run


def report(run: Run) -> None:
    """Say how a run went."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in run.counts.most_common())
    say(f"  {counts}; {run.seconds:g} s")
    for reason, count in run.reasons.most_common():
        say(f"    skipped {count}: {reason}")
    for name, count in run.wrapped.items():
        say(f"    {name}: {count}")


def grouped(tests: dict[str, End]) -> dict[str, list[str]]:
    """Tests by how they ended and why: one fault often has a thousand of them."""
    groups: dict[str, list[str]] = {}
    for name, test in tests.items():
        groups.setdefault(f"{test.outcome} ({test.reason[:200]})", []).append(name)
    return groups


def faults(run: Run, before: Run | None) -> list[str]:
    """What is wrong, one line each; none if all is well."""
    if before is None:
        return [f"{len(names)} {end}, such as {names[0]}" for end, names in grouped(run.failures).items()]
    found = [
        f"{len(names)} passed, and {end} when wrapped, such as {names[0]}"
        for end, names in grouped(regressions(before, run)).items()
    ]
    if run.wrap != THROUGH and not run.wrapped.get("clients"):
        found.append("no client was wrapped")
    if run.wrap == "repeat" and not run.selection and not run.wrapped.get("local_hits"):
        found.append("nothing was answered from memory: the run proves little")
    return found


def server_binary(asked: str, suite: Environment) -> str:
    """The program to start for `valkey`, for `redis`, or for the path of one."""
    if asked == "redis":
        return redis_binary(suite)
    return find_binary(prefer_wheel=True) if asked == "valkey" else asked


def say(line: str) -> None:
    """Tell a person; what is for programs goes to stdout."""
    sys.stderr.write(line + "\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    asked = _parser().parse_args(arguments)
    suite = environment.prepare()
    binary = server_binary(asked.server, suite)
    part = [f"--keyheat-part={asked.part}"] if asked.part else []
    selection = [*part, *(["-k", asked.k] if asked.k else []), *asked.pytest]
    wanted = Wanted(asked.mode, binary, asked.resp, asked.wrap, selection, asked.all)
    before = baseline(wanted, suite) if wanted.wrap else None
    run, path = execute(wanted, suite)
    report(run)
    wrong = faults(run, before)
    for line in wrong:
        say(f"WRONG {line}")
    if asked.json:
        worse = sorted(regressions(before, run) if before else run.failures)
        summary = {
            "counts": run.counts,
            "wrapped": run.wrapped,
            "wrong": wrong,
            "tests": worse,
            "results": str(path),
        }
        sys.stdout.write(json.dumps(summary) + "\n")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--wrap", nargs="?", choices=WRAPPERS, const="protect", help="protect if not said")
    parser.add_argument(
        "--through",
        dest="wrap",
        choices=(THROUGH,),
        help="leave the clients alone, and put a proxy before the servers",
    )
    parser.add_argument("--no-wrap", dest="wrap", action="store_const", const=None, help="the default")
    parser.add_argument("--resp", type=int, choices=(2, 3), help="the protocol; by default redis-py's choice")
    parser.add_argument(
        "--server", default="valkey", help="valkey (the wheel), redis (a wheel for tests), or a program"
    )
    parser.add_argument("--all", action="store_true", help="run the tests that redis_py_skips.toml lists too")
    parser.add_argument("--json", action="store_true", help="a summary for programs, on stdout")
    parser.add_argument("--part", metavar="I/N", help="only the I-th of N parts of about the same size")
    parser.add_argument("-k", help="only these tests, as pytest's -k")
    parser.add_argument("pytest", nargs="*", help="more for pytest, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
