"""What a run of redis-py's tests found, and what a wrapped run did worse than the unwrapped one."""

import json
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

PASSED: Final = "passed"
# Ends that redis-py itself is content with; everything else that is not `passed` is a failure.
QUIET: Final = frozenset({"skipped", "xfailed", "xpassed"})


@dataclass(frozen=True)
class End:
    """One test's end: `passed`, `failed`, `error`, `skipped`, `xfailed`, `xpassed` or `lost`.

    A lost test was selected but never ended: the run was cut off or crashed before it.
    """

    outcome: str
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Run:
    """One run: what it was of, and how each of its tests ended."""

    mode: str
    server: str
    resp: int | None
    wrap: str | None
    selection: list[str]
    seconds: float
    tests: dict[str, End]
    left_out: list[str] = field(default_factory=list)
    wrapped: dict[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> "Counter[str]":
        """How many tests ended how."""
        return Counter(test.outcome for test in self.tests.values())

    @property
    def failures(self) -> dict[str, End]:
        """The tests that neither passed nor were skipped."""
        return {name: test for name, test in self.tests.items() if test.outcome not in {PASSED, *QUIET}}

    @property
    def reasons(self) -> "Counter[str]":
        """Why tests were skipped, and how many for each reason."""
        return Counter(test.reason for test in self.tests.values() if test.outcome == "skipped")

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        whole: dict[str, Any] = json.loads(path.read_text())
        tests = {name: End(**test) for name, test in whole.pop("tests").items()}
        return cls(tests=tests, **whole)


def read_records(path: Path) -> tuple[dict[str, End], dict[str, int], list[str]]:
    """What the plugins wrote: the tests, the wrapping's totals, and the listed names that no test has."""
    tests: dict[str, End] = {}
    wrapped: dict[str, int] = {}
    unmatched: list[str] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        match record.pop("record"):
            case "selected":
                tests = {name: End("lost", "the run ended before it") for name in record["tests"]}
                unmatched = record["unmatched"]
            case "test":
                name = record.pop("id")
                tests[name] = End(**record)
            case "wrapped":
                wrapped = record["totals"]
    return tests, wrapped, unmatched


def regressions(before: Run, after: Run) -> dict[str, End]:
    """The tests that passed unwrapped and did not wrapped.

    A test that the wrapped run did not select is one of them only if both runs were asked for the same, and
    if it was not left out on purpose.
    """
    found = {}
    left_out = tuple(after.left_out)
    for name, test in before.tests.items():
        if name.startswith(left_out):
            continue
        now = after.tests.get(name)
        if now is None and before.selection == after.selection:
            now = End("lost", "the wrapped run did not collect it")
        if test.outcome == PASSED and now is not None and now.outcome != PASSED:
            found[name] = now
    return found


@dataclass(frozen=True)
class Skip:
    """Tests that are not run, and why: an entry of `redis_py_skips.toml`.

    Args:
        tests: Files, classes, tests or parametrised cases, as pytest writes them.
        reason: What they need that is not here.
        modes: Only in these modes; everywhere if empty.
        servers: Only against these products, `valkey` or `redis`; any if empty.
        resp: Only with these protocol versions asked for; any if empty.
        wraps: Only with clients wrapped in these ways; any, and not at all, if empty.
    """

    tests: list[str]
    reason: str
    modes: list[str] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)
    resp: list[int] = field(default_factory=list)
    wraps: list[str] = field(default_factory=list)

    def concerns(self, mode: str, product: str, resp: int | None, wrap: str | None) -> bool:
        """Whether it holds in such a run."""
        return (
            (not self.modes or mode in self.modes)
            and (not self.servers or product in self.servers)
            and (not self.resp or resp in self.resp)
            and (not self.wraps or wrap in self.wraps)
        )


def load_skips(path: Path) -> list[Skip]:
    """The entries of the file."""
    return [Skip(**entry) for entry in tomllib.loads(path.read_text())["skip"]]


def skipped(
    skips: Iterable[Skip], mode: str, product: str, resp: int | None, wrap: str | None
) -> dict[str, str]:
    """Test (or file, or class) → reason, for one run."""
    held = [skip for skip in skips if skip.concerns(mode, product, resp, wrap)]
    return {test: skip.reason for skip in held for test in skip.tests}
