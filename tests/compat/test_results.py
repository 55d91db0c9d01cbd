"""The comparison and the list of skips, without running anything."""

import dataclasses
import json
from pathlib import Path

from tests.compat.redis_py_suite import MODES, SKIPS
from tests.compat.results import End, Run, Skip, load_skips, read_records, regressions, skipped

BEFORE = Run(
    mode="sync",
    server="valkey-1",
    resp=None,
    wrap=None,
    selection=[],
    seconds=1.0,
    tests={"good": End("passed"), "bad": End("failed", "no such thing"), "out": End("skipped", "no modules")},
)


def after(selection: list[str] | None = None, **outcomes: str) -> Run:
    tests = {name: End(outcome) for name, outcome in outcomes.items()}
    return dataclasses.replace(BEFORE, wrap="protect", selection=selection or [], tests=tests)


def test_a_test_that_passed_and_fails_wrapped_is_a_regression() -> None:
    assert regressions(BEFORE, after(good="failed", bad="failed", out="skipped")) == {"good": End("failed")}


def test_a_test_that_is_skipped_only_when_wrapped_is_a_regression() -> None:
    assert regressions(BEFORE, after(good="skipped", bad="failed", out="skipped")) == {"good": End("skipped")}


def test_a_test_that_vanished_from_a_whole_run_is_a_regression() -> None:
    assert regressions(BEFORE, after(bad="failed"))["good"].outcome == "lost"


def test_a_test_that_a_partial_run_did_not_select_is_no_regression() -> None:
    assert regressions(BEFORE, after(["-k", "bad"], bad="failed")) == {}


def test_a_run_is_read_as_it_was_saved(tmp_path: Path) -> None:
    BEFORE.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == BEFORE


def test_a_test_without_an_end_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "records"
    lines = [
        {"record": "selected", "tests": ["a", "b"], "unmatched": ["c"]},
        {"record": "test", "id": "a", "outcome": "passed", "reason": "", "seconds": 0.1},
        {"record": "wrapped", "totals": {"clients": 3}},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    tests, totals, unmatched = read_records(path)
    assert {name: test.outcome for name, test in tests.items()} == {"a": "passed", "b": "lost"}
    assert (totals, unmatched) == ({"clients": 3}, ["c"])


def test_a_skip_holds_only_where_it_says() -> None:
    skips = [Skip(["a"], "everywhere"), Skip(["b"], "there", modes=["cluster"], servers=["redis"], resp=[2])]
    assert skipped(skips, "sync", "valkey", None, None) == {"a": "everywhere"}
    assert skipped(skips, "cluster", "redis", 3, None) == {"a": "everywhere"}
    assert skipped(skips, "cluster", "redis", 2, None) == {"a": "everywhere", "b": "there"}


def test_every_listed_skip_names_known_modes_servers_and_what_is_missing() -> None:
    for skip in load_skips(SKIPS):
        assert skip.tests
        assert len(skip.reason) > 10
        assert set(skip.modes) <= set(MODES)
        assert set(skip.servers) <= {"valkey", "redis"}
