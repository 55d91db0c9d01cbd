"""Embedded servers: they start, form Clusters, and leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from keyheat.errors import EmbeddedServerError
from keyheat.server import embedded
from keyheat.server.binary import find_binary
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer, free_ports
from keyheat.server.rundir import RunDir

Eventually = Callable[..., Any]

HOLDER = """
import sys
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.binary import find_binary
cluster = EmbeddedCluster(3, binary=find_binary(prefer_wheel=True))
print(*(node.pid for node in cluster.nodes), cluster._rundir.path, flush=True)
sys.stdin.read()
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_listens_on_loopback_only(server: EmbeddedServer) -> None:
    with server.client(decode_responses=True) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"


def test_a_taken_port_is_left_for_another(server_binary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        offers = [[taken.getsockname()[1], 0], free_ports(2)]
        monkeypatch.setattr(embedded, "free_ports", lambda _count: offers.pop(0))
        with EmbeddedServer(binary=server_binary) as running, running.client() as client:
            assert client.ping()


def test_a_bad_directive_is_said_in_the_servers_words(server_binary: str) -> None:
    with pytest.raises(EmbeddedServerError, match="nonsense-directive"):
        EmbeddedServer({"nonsense-directive": "1"}, binary=server_binary)


def test_closing_removes_process_and_files(server_binary: str) -> None:
    running = EmbeddedServer(binary=server_binary)
    pid, directory = running.pid, running._directory
    running.close()
    assert not is_alive(pid)
    assert not directory.parent.exists()


def test_a_cluster_serves_every_slot(cluster: EmbeddedCluster) -> None:
    node = redis.cluster.ClusterNode("127.0.0.1", cluster.primaries[0].port)
    with redis.RedisCluster(startup_nodes=[node]) as client:
        for n in range(100):
            client.set(f"key:{n}", n)
        assert [client.get(f"key:{n}") for n in range(100)] == [str(n).encode() for n in range(100)]


def test_the_owner_of_a_key_has_it(cluster: EmbeddedCluster) -> None:
    with cluster.owner("item:1").client() as client:
        assert client.set("item:1", "x")


def test_a_killed_primary_is_replaced_by_its_replica(
    own_cluster: EmbeddedCluster, eventually: Eventually
) -> None:
    own_cluster.primaries[0].kill()

    def is_promoted() -> bool:
        with own_cluster.replicas[0].client() as client:
            return bool(client.execute_command("ROLE")[0] == b"master")

    eventually(is_promoted, timeout_s=20)
    own_cluster.wait_until_ok()


def test_a_paused_server_goes_on_where_it_was(own_server: EmbeddedServer) -> None:
    with own_server.client(socket_timeout=0.3, retry=None) as client:
        client.set("k", "v")
        own_server.pause()
        with pytest.raises(redis.TimeoutError):
            client.get("k")
        own_server.resume()
        assert client.get("k") == b"v"


def test_a_restarted_server_keeps_its_port(own_server: EmbeddedServer) -> None:
    port = own_server.port
    own_server.kill()
    own_server.restart()
    assert own_server.port == port
    with own_server.client() as client:
        assert client.ping()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_servers_end_with_their_parent_however_it_ends(
    number: signal.Signals, eventually: Eventually
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        *pids, directory = parent.stdout.readline().split()
        assert all(is_alive(int(pid)) for pid in pids)
        parent.send_signal(number)
    eventually(lambda: not any(is_alive(int(pid)) for pid in pids))
    # The directory of a killed run goes with the next run.
    RunDir().close()
    assert not Path(directory).exists()


def test_the_directory_of_a_living_run_stays() -> None:
    with RunDir() as one:
        RunDir().close()
        assert one.path.exists()
    assert not one.path.exists()


def test_the_named_binary_is_taken(
    monkeypatch: pytest.MonkeyPatch, server_binary: str, tmp_path: Path
) -> None:
    named = tmp_path / "my-server"
    named.symlink_to(server_binary)
    monkeypatch.setenv("KEYHEAT_SERVER", str(named))
    assert find_binary() == str(named)
    assert find_binary(prefer_wheel=True) == str(named)


def test_a_named_binary_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYHEAT_SERVER", os.devnull)
    with pytest.raises(EmbeddedServerError, match="KEYHEAT_SERVER"):
        find_binary()
