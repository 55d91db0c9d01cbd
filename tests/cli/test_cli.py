"""The command line as a whole: help, versions, exit status, clear errors."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
COMMANDS = ("demo", "up", "proxy", "hot", "replay", "doctor")


def test_help_names_every_command(keyheat: Run) -> None:
    done = keyheat("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(keyheat: Run, command: str) -> None:
    done = keyheat(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")


def test_help_is_quick(keyheat: Run) -> None:
    took_s = []
    for _ in range(3):
        before_s = time.monotonic()
        keyheat("--help")
        took_s.append(time.monotonic() - before_s)
    assert min(took_s) < 1.0


def test_help_loads_nothing_heavy(keyheat: Run) -> None:
    done = keyheat("--help", PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert loaded & {"redis", "pydantic", "rich.live", "zstandard", "keyheat._keyheat"} == set()


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["hot", "--nonsense"],
        ["replay"],
        ["replay", "trace"],
        ["replay", "trace", "--to", "http://h"],
        ["replay", "trace", "--to", "redis://h", "--format", "pcap"],
        ["doctor", "rediss://h"],
        ["demo", "--seconds", "1"],
        ["up", "--listen", "1:2:3"],
        ["up", "--max-staleness", "3"],
        ["up", "--log", "loud"],
        ["hot", "--server", "ftp://h"],
    ],
)
def test_a_wrong_request_is_status_2(keyheat: Run, words: list[str]) -> None:
    done = keyheat(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr


def test_a_missing_trace_is_named(keyheat: Run, valkey: str, tmp_path: Path) -> None:
    done = keyheat("replay", str(tmp_path / "nowhere"), "--to", valkey)
    assert done.returncode == 1
    assert done.stderr.startswith("keyheat: cannot read the trace ")


def test_no_keyheat_at_the_address_is_one_clear_line(keyheat: Run, free_port: int) -> None:
    done = keyheat("hot", "--server", f"http://127.0.0.1:{free_port}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"keyheat: no keyheat at http://127.0.0.1:{free_port}: connection refused")
    assert done.stderr.count("\n") == 1


def test_a_server_that_is_no_keyheat_is_said(keyheat: Run, valkey: str) -> None:
    done = keyheat("hot", "--server", f"http://{valkey}")
    assert done.returncode == 1
    assert "keyheat" in done.stderr
    assert "Traceback" not in done.stderr
