"""`keyheat demo` end to end: short here; its figures are checked where they do not depend on luck."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.native

Run = Callable[..., Any]
FIELDS = {
    "detect_ms",
    "protect_ms",
    "imbalance_before",
    "imbalance_after",
    "imbalance_trace",
    "hit_ratio",
    "upstream_reads_saved",
    "stale_max_ms",
    "stale_p99_ms",
    "max_staleness_ms",
    "local_hits",
    "proof_lapsed",
    "upstream_ops_after",
    "reads",
    "writes",
    "errors",
    "seconds",
}


def test_a_hot_key_is_found_and_disarmed(keyheat: Run) -> None:
    done = keyheat("demo", "--seconds", "24", "--json", timeout_s=90)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) >= FIELDS
    assert found["errors"] == 0
    assert found["stale_max_ms"] <= found["max_staleness_ms"]
    assert found["detect_ms"] is not None
    assert found["protect_ms"] >= found["detect_ms"]
    assert found["local_hits"] > 1000
    assert found["imbalance_after"] < found["imbalance_before"]
    assert found["upstream_reads_saved"] > 0


@pytest.mark.parametrize("after_s", [0.0, 0.4, 1.5, 4.0])
def test_an_interrupt_at_any_moment_leaves_nothing_behind(
    start_keyheat: Run, children: Callable[[int], set[int]], tmp_path: Path, eventually: Run, after_s: float
) -> None:
    process = start_keyheat("demo", "--json", TMPDIR=str(tmp_path))
    seen: set[int] = set()
    deadline = time.monotonic() + after_s
    seen |= eventually(lambda: children(process.pid), timeout_s=20)
    while time.monotonic() < deadline:  # the moment of the interrupt is what is tested
        seen |= children(process.pid)
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    seen |= children(process.pid)
    assert (process.returncode, out, err) == (130, "", "")
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in seen))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_demo_leaves_no_process(
    start_keyheat: Run, children: Callable[[int], set[int]], tmp_path: Path, eventually: Run
) -> None:
    process = start_keyheat("demo", "--json", TMPDIR=str(tmp_path))
    # Three servers, four readers, one writer.
    started = eventually(lambda: found if len(found := children(process.pid)) == 8 else None, timeout_s=30)
    process.kill()
    process.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
