"""A pytest plugin, run inside redis-py's tests: leave out the listed tests, write down how the rest end.

`--keyheat-part=I/N` keeps one part of N. A test's part follows from its name without its parameters, so it
is the same in every run, and the cases of one test stay together.

Each line is written when its test ends, so a run that crashes still tells which test it was in.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

_records = Path(os.environ["KEYHEAT_COMPAT_RECORDS"])
_skips: dict[str, str] = json.loads(os.environ["KEYHEAT_COMPAT_SKIPS"])
_unmatched: set[str] = set()
_open: dict[str, dict[str, Any]] = {}


def write(record: str, **what: object) -> None:
    """Append one record."""
    with _records.open("a") as out:
        out.write(json.dumps({"record": record, **what}) + "\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the part."""
    parser.addoption("--keyheat-part", metavar="I/N", default="1/1")


@pytest.hookimpl(tryfirst=True)  # before the markers: a listed test is there, whatever this run selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that are listed, by name or by their class or file."""
    files = {item.nodeid.partition("::")[0] for item in items}
    _unmatched.update(name for name in _skips if name.partition("::")[0] in files)
    part, parts = map(int, config.getoption("keyheat_part").split("/"))
    out = [item for item in items if _listed(item.nodeid) or _part(item.nodeid, parts) != part]
    if out:
        config.hook.pytest_deselected(items=out)
        leave = set(out)
        items[:] = [item for item in items if item not in leave]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write down what is about to run."""
    write("selected", tests=[item.nodeid for item in session.items], unmatched=sorted(_unmatched))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down a test's end when its last phase is over."""
    test = _open.setdefault(report.nodeid, {"outcome": "passed", "reason": "", "seconds": 0.0})
    test["seconds"] = round(test["seconds"] + report.duration, 3)
    if (outcome := _outcome(report)) != "passed" and test["outcome"] in {"passed", "skipped"}:
        test |= {"outcome": outcome, "reason": _reason(report)}
    if report.when == "teardown":
        write("test", id=report.nodeid, **_open.pop(report.nodeid))


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xpassed" if report.passed else "xfailed"
    if report.failed and report.when != "call":
        return "error"
    return report.outcome


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # a skip: file, line, why
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr or "")
    return " ".join(text.split())[:300]


def _part(nodeid: str, parts: int) -> int:
    return zlib.crc32(nodeid.partition("[")[0].encode()) % parts + 1


def _listed(nodeid: str) -> bool:
    hits = [
        name for name in _skips if nodeid == name or (nodeid.startswith(name) and nodeid[len(name)] in "[:/")
    ]
    _unmatched.difference_update(hits)
    return bool(hits)
