"""`keyheat doctor` against real servers."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer

Run = Callable[..., Any]
NAMES = ["version", "mode", "tracking", "lfu", "hotkeys", "monitor", "modules", "acl"]


@pytest.fixture(scope="module")
def guarded(server_binary: str) -> Iterator[EmbeddedServer]:
    """A server with users of few rights."""
    config = {"maxmemory-policy": "allkeys-lfu", "enable-module-command": "local"}
    with EmbeddedServer(config, binary=server_binary) as server, server.client() as client:
        client.acl_setuser(
            "reader", enabled=True, passwords=["+s3cr3t"], categories=["+@read", "+@connection"], keys=["*"]
        )
        client.acl_setuser("app", enabled=True, passwords=["+s3cr3t"], categories=["+@all"], keys=["app:*"])
        client.acl_setuser(
            "blind",
            enabled=True,
            passwords=["+s3cr3t"],
            categories=["+@all"],
            commands=["-client|tracking", "-monitor", "-info", "-role"],
            keys=["*"],
        )
        yield server


def examined(keyheat: Run, url: str) -> dict[str, dict[str, Any]]:
    done = keyheat("doctor", url, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "s3cr3t" not in done.stdout
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_server_without_limits(keyheat: Run, valkey: str) -> None:
    found = examined(keyheat, f"redis://{valkey}")
    assert list(found) == NAMES
    assert found["version"]["found"].startswith("Valkey ")
    assert found["tracking"]["found"].startswith("RESP3 invalidation came")
    assert {name for name, check in found.items() if check["ok"]} == {
        "version",
        "mode",
        "tracking",
        "monitor",
        "acl",
    }


def test_every_check_is_one_line(keyheat: Run, valkey: str) -> None:
    done = keyheat("doctor", f"redis://{valkey}")
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines[1:]] == NAMES


def test_nothing_is_left_in_the_server(keyheat: Run, valkey: str, server: EmbeddedServer) -> None:
    examined(keyheat, f"redis://{valkey}")
    with server.client() as client:
        assert client.keys() == []


def test_a_cluster_is_tried_with_a_key_of_the_node(keyheat: Run, cluster: EmbeddedCluster) -> None:
    for node in cluster.primaries:
        found = examined(keyheat, node.url)
        assert found["mode"]["found"] == "Cluster of 3 primaries, state ok; this node: primary"
        assert found["tracking"]["found"].startswith("RESP3 invalidation came")
        assert found["acl"]["ok"]


def test_lfu_and_modules_where_the_server_allows_them(keyheat: Run, guarded: EmbeddedServer) -> None:
    found = examined(keyheat, guarded.url)
    assert found["lfu"]["ok"]
    assert found["modules"]["ok"]


def test_a_user_that_may_only_read(keyheat: Run, guarded: EmbeddedServer) -> None:
    found = examined(keyheat, f"redis://reader:s3cr3t@{guarded.address}")
    assert "no invalidation tried" in found["tracking"]["found"]
    assert not found["monitor"]["ok"]
    assert "'reader'" in found["acl"]["found"]
    assert "ROLE" in found["acl"]["found"]


def test_a_user_without_tracking_has_no_local_cache(keyheat: Run, guarded: EmbeddedServer) -> None:
    found = examined(keyheat, f"redis://blind:s3cr3t@{guarded.address}")
    assert not found["tracking"]["ok"]
    assert found["tracking"]["leaves"].startswith("no local cache")
    assert found["acl"]["leaves"] == "proxy and hot keys; no local cache"
    assert "by its HELLO" in found["version"]["found"]
    assert found["mode"]["found"].startswith("standalone")
    assert "the ACL forbids it" in found["monitor"]["found"]


def test_a_user_of_some_keys_is_told_so(keyheat: Run, guarded: EmbeddedServer) -> None:
    found = examined(keyheat, f"redis://app:s3cr3t@{guarded.address}")
    assert found["acl"]["found"].endswith("on some key patterns only")
    assert "no invalidation tried" in found["tracking"]["found"]


def test_a_server_that_is_down_is_one_clear_line(keyheat: Run, free_port: int) -> None:
    done = keyheat("doctor", f"redis://user:s3cr3t@127.0.0.1:{free_port}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"keyheat: no server at 127.0.0.1:{free_port}: connection refused\n"


@pytest.mark.parametrize("user", ["", "reader:wr0ng@", ":wr0ng@"])
def test_a_refused_user_is_one_clear_line_without_the_password(
    keyheat: Run, server_binary: str, user: str
) -> None:
    with EmbeddedServer({"requirepass": "s3cr3t"}, binary=server_binary) as server:
        done = keyheat("doctor", f"redis://{user}{server.address}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "wr0ng" not in done.stderr
