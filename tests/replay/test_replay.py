"""`keyheat replay` against real servers."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer

Run = Callable[..., Any]


def trace_of(path: Path, lines: list[str]) -> str:
    path.write_text("time,op,key,size\n" + "\n".join(lines) + "\n")
    return str(path)


def replayed(keyheat: Run, *words: str) -> dict[str, Any]:
    done = keyheat("replay", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    whole: dict[str, Any] = json.loads(done.stdout)
    return whole


def test_operations_become_real_commands(
    keyheat: Run, tmp_path: Path, valkey: str, server: EmbeddedServer
) -> None:
    lines = [
        "0,set,a,10",
        "0,add,a,99",
        "0,add,b,5",
        "0,replace,none,5",
        "0,append,b,3",
        "0,incr,n,0",
        "0,get,a,0",
        "0,gets,missing,0",
        "0,set,gone,1",
        "0,delete,gone,0",
        "0,frobnicate,a,0",
    ]
    found = replayed(
        keyheat, trace_of(tmp_path / "t", lines), "--to", valkey, "--clients", "1", "--speed", "0"
    )
    assert (found["accesses"], found["ops"], found["errors"]) == (11, 10, 0)
    assert (found["reads"], found["writes"], found["hits"], found["misses"]) == (2, 8, 1, 1)
    assert found["skipped_by_op"] == {"frobnicate": 1}
    with server.client() as client:
        assert sorted(client.keys()) == [b"a", b"b", b"n"]
        assert (client.strlen("a"), client.strlen("b"), client.get("n")) == (10, 8, b"1")


@pytest.mark.parametrize("resp", ["2", "3"])
def test_fill_makes_later_reads_hit(keyheat: Run, tmp_path: Path, valkey: str, resp: str) -> None:
    path = tmp_path / "t"
    path.write_text("".join(f"{n},{n % 50},{100 + n % 50},0\n" for n in range(500)))
    options = ("--clients", "1", "--speed", "0", "--fill", "--resp", resp)
    found = replayed(keyheat, str(path), "--to", valkey, *options)
    assert (found["format"], found["reads"], found["misses"], found["fills"]) == ("libcachesim", 500, 50, 50)
    assert found["ops"] == 550


def test_many_clients_play_every_access_once(keyheat: Run, tmp_path: Path, cluster: EmbeddedCluster) -> None:
    lines = [f"0,incr,n:{n % 7},0" for n in range(3001)]
    trace = trace_of(tmp_path / "t", lines)
    found = replayed(keyheat, trace, "--to", cluster.url, "--clients", "9", "--speed", "0")
    assert (found["ops"], found["errors"]) == (3001, 0)
    total = 0
    for n in range(7):
        with cluster.owner(f"n:{n}").client() as client:
            total += int(client.get(f"n:{n}") or 0)
    assert total == 3001


def test_a_trace_is_played_at_its_times(keyheat: Run, tmp_path: Path, valkey: str) -> None:
    trace = trace_of(tmp_path / "t", [f"{n / 100},get,k,0" for n in range(200)])
    found = replayed(keyheat, trace, "--to", valkey, "--speed", "4")
    assert 0.45 < found["seconds"] < 5
    assert found["lag_ms"]["p50"] >= 0
    assert found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]


def test_a_limit_ends_it_early(keyheat: Run, tmp_path: Path, valkey: str) -> None:
    trace = trace_of(tmp_path / "t", ["0,get,k,0"] * 100)
    assert replayed(keyheat, trace, "--to", valkey, "--limit", "10")["ops"] == 10


def test_errors_are_counted_by_kind(keyheat: Run, tmp_path: Path, valkey: str) -> None:
    trace = trace_of(tmp_path / "t", ["0,set,k,3", "0,incr,k,0", "0,get,k,0"])
    found = replayed(keyheat, trace, "--to", valkey, "--clients", "1", "--speed", "0")
    assert found["errors"] == 1
    assert list(found["errors_by_kind"].values()) == [1]


def test_malformed_lines_are_reported_and_do_not_stop_it(keyheat: Run, tmp_path: Path, valkey: str) -> None:
    trace = trace_of(tmp_path / "t", ["0,get,k,0", "what is this", "0,get,k,0"])
    found = replayed(keyheat, trace, "--to", valkey)
    assert (found["ops"], found["malformed"]) == (2, 1)


def test_ctrl_c_gives_the_summary_so_far(
    start_keyheat: Run, tmp_path: Path, valkey: str, eventually: Run
) -> None:
    trace = trace_of(tmp_path / "t", [f"{n / 100},incr,progress,0" for n in range(100_000)])
    process = start_keyheat("replay", trace, "--to", valkey, "--json")
    with_client = EmbeddedServerClient(valkey)
    eventually(lambda: with_client.get("progress"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    found = json.loads(out)
    assert (process.returncode, err) == (130, "")
    assert found["interrupted"]
    assert found["ops"] == int(with_client.get("progress") or 0)


class EmbeddedServerClient:
    """The few words this file says to a server directly."""

    def __init__(self, address: str) -> None:
        import redis  # noqa: PLC0415

        host, _, port = address.partition(":")
        self._client = redis.Redis(host, int(port), single_connection_client=True)

    def get(self, key: str) -> bytes | None:
        value: Any = self._client.get(key)
        return bytes(value) if value is not None else None


def test_a_server_that_is_down_is_one_clear_line(keyheat: Run, tmp_path: Path, free_port: int) -> None:
    trace = trace_of(tmp_path / "t", ["0,get,k,0"])
    before_s = time.monotonic()
    done = keyheat("replay", trace, "--to", f"redis://127.0.0.1:{free_port}")
    assert done.returncode == 1
    assert done.stderr == f"keyheat: no server at 127.0.0.1:{free_port}: connection refused\n"
    assert time.monotonic() - before_s < 10


def test_a_password_is_in_no_process_list_and_no_output(
    start_keyheat: Run,
    tmp_path: Path,
    server_binary: str,
    children: Callable[[int], set[int]],
    eventually: Run,
) -> None:
    trace = trace_of(tmp_path / "t", [f"{n / 10},get,k,0" for n in range(1000)])
    with EmbeddedServer({"requirepass": "s3cr3t"}, binary=server_binary) as server:
        process = start_keyheat("replay", trace, "--to", f"redis://:s3cr3t@{server.address}")
        workers = eventually(lambda: children(process.pid))
        for pid in workers:
            # Between fork and exec a child still shows the command line of its parent.
            eventually(lambda pid=pid: "s3cr3t" not in Path(f"/proc/{pid}/cmdline").read_text())
        time.sleep(0.5)  # not for correctness: let it play a little
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert "s3cr3t" not in out + err
