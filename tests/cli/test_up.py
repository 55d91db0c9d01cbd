"""`keyheat up` and `keyheat hot` as a user runs them."""

import contextlib
import json
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer

pytestmark = pytest.mark.native

Run = Callable[..., Any]
HOT_RULE = """
[[rules]]
name = "test"
match = { any = true }
levels = [{ metric = "reads", enter_per_s = 50 }]
"""


class Up:
    """A running `keyheat up`."""

    def __init__(self, process: Any) -> None:
        self.process = process
        line = process.stdout.readline()
        found = re.fullmatch(r"keyheat listens on redis://127\.0\.0\.1:(\d+), http on (\S+)\n", line)
        assert found, line + process.stderr.read()
        self.port = int(found[1])
        self.http = found[2]

    def client(self, **options: Any) -> "redis.Redis":
        return redis.Redis("127.0.0.1", self.port, **options)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


@pytest.fixture
def up(start_keyheat: Run) -> Callable[..., Up]:
    def start(*words: str) -> Up:
        return Up(start_keyheat("up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *words))

    return start


@contextmanager
def reading(client: "redis.Redis", key: str) -> Iterator[None]:
    """Read a key in a loop beside the test."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            client.get(key)
            time.sleep(0.001)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_an_upstream_there_is_an_embedded_one(
    up: Callable[..., Up], children: Callable[[int], set[int]], number: signal.Signals
) -> None:
    running = up()
    with running.client() as client:
        client.set("k", "v")
        assert client.get("k") == b"v"
    servers = children(running.process.pid)
    assert servers
    status, err = running.end(number)
    assert status == 0, err
    assert not any(Path(f"/proc/{pid}").exists() for pid in servers)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_standalone_server_through_it(up: Callable[..., Up], valkey: str, protocol: int) -> None:
    running = up("--upstream", f"redis://{valkey}")
    with running.client(protocol=protocol) as client:
        client.hset("h", mapping={"a": "1", "b": "2"})
        assert client.hgetall("h") == {b"a": b"1", b"b": b"2"}


def test_a_cluster_through_it_is_one_server(up: Callable[..., Up], cluster: EmbeddedCluster) -> None:
    running = up("--upstream", cluster.url)
    with running.client() as client:
        values = {f"k:{n}": str(n).encode() for n in range(100)}
        assert client.mset(values)
        assert client.mget(list(values)) == list(values.values())
        assert client.delete(*values) == 100


def test_a_key_read_often_is_hot(
    up: Callable[..., Up], keyheat: Run, valkey: str, tmp_path: Path, eventually: Run
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(HOT_RULE)
    running = up("--upstream", valkey, "--rules", str(rules))
    with running.client() as client, running.client() as reader:
        client.set(b"hot\x1b[2J", "v")
        with reading(reader, "hot\x1b[2J"):

            def hot_lines() -> list[str]:
                done = keyheat("hot", "--server", running.http, "--json")
                assert done.returncode == 0, done.stderr
                lines: list[str] = done.stdout.splitlines()
                return lines

            lines = eventually(hot_lines)
            shown = keyheat("hot", "--server", running.http)
    found = json.loads(lines[0])
    assert found["key"].startswith("hot")
    assert found["rule"] == "test"
    assert shown.returncode == 0
    assert "hot\\x1b[2J" in shown.stdout
    assert "\x1b[2J" not in shown.stdout


def test_http_says_healthy_and_counts(up: Callable[..., Up], valkey: str) -> None:
    running = up("--upstream", valkey)
    with running.client() as client:
        client.get("k")  # PING would not ask the server, which may not have been looked at yet
    with urllib.request.urlopen(f"{running.http}/healthz", timeout=5) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{running.http}/metrics", timeout=5) as answer:
        assert b"keyheat" in answer.read()


def test_a_taken_port_is_one_clear_line(keyheat: Run, valkey: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = keyheat("up", "--upstream", valkey, "--listen", address, "--http", "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(
        f"keyheat: cannot listen on {address}: the address is in use"
    )


def test_a_bad_rules_file_is_refused_before_anything_starts(keyheat: Run, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(HOT_RULE.replace('"reads"', '"cpu"'))
    done = keyheat("up", "--rules", str(rules))
    assert (done.returncode, done.stdout) == (2, "")
    assert "rules[0].levels[0].metric" in done.stderr


def test_an_upstream_that_is_down_is_said_to_clients_and_comes_back(
    up: Callable[..., Up], own_server: EmbeddedServer, eventually: Run
) -> None:
    own_server.kill()
    running = up("--upstream", own_server.address)
    with running.client(retry=None) as client, pytest.raises(redis.RedisError):
        client.get("k")
    own_server.restart()

    def answers() -> bool:
        try:
            with running.client(retry=None) as client:
                return bool(client.set("k", "v"))
        except redis.RedisError:
            return False

    eventually(answers)


def test_a_drain_loses_no_reply(up: Callable[..., Up], valkey: str, eventually: Run) -> None:
    running = up("--upstream", valkey)
    outcomes: list[bool] = []

    def write() -> None:
        # One that comes late may meet a proxy that takes nobody any more.
        with (
            contextlib.suppress(redis.RedisError),
            running.client(retry=None, single_connection_client=True) as client,
        ):
            while True:
                client.incr("writes")
                outcomes.append(True)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    eventually(lambda: len(outcomes) > 200)
    status, err = running.end()
    for writer in writers:
        writer.join()
    host, _, port = valkey.partition(":")
    with redis.Redis(host, int(port)) as direct:
        written: Any = direct.get("writes")
    assert status == 0, err
    # A write the server did and whose reply was lost would make the server's count the larger one.
    assert int(written) == len(outcomes)
