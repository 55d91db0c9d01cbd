"""Clients that connect to the proxy by a Unix socket."""

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redis

from tests.conftest import ProxyFactory, RunKeyheat, StartKeyheat
from tests.proxy.walk import walk


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short: a socket's has to be."""
    with TemporaryDirectory(prefix="kh-") as made:
        yield Path(made)


def test_it_is_the_same_proxy(proxy_factory: ProxyFactory, valkey: str, folder: Path) -> None:
    path = folder / "s"
    proxy = proxy_factory(valkey, unix_socket=str(path))
    with redis.Redis(port=int(proxy.listen.rsplit(":", 1)[1])) as by_tcp:
        for protocol in (2, 3):
            client = redis.Redis(unix_socket_path=str(path), protocol=protocol)
            walk(client, by_tcp, os.urandom(3_000_000))


def test_many_come_and_go(proxy_factory: ProxyFactory, valkey: str, folder: Path) -> None:
    path = folder / "s"
    proxy_factory(valkey, unix_socket=str(path), shards=2)
    for _ in range(20):
        clients = [redis.Redis(unix_socket_path=str(path)) for _ in range(20)]
        assert all(client.ping() for client in clients)
        for client in clients:
            client.close()
    with socket.socket(socket.AF_UNIX) as half:
        half.connect(str(path))
        half.sendall(b"*1\r\n$4\r\nPI")  # and gone


def test_its_permissions_say_who_may_connect(proxy_factory: ProxyFactory, valkey: str, folder: Path) -> None:
    proxy_factory(valkey, unix_socket=str(folder / "own"))
    proxy_factory(valkey, unix_socket=str(folder / "shared"), unix_socket_mode="660")
    modes = [stat.S_IMODE((folder / name).stat().st_mode) for name in ("own", "shared")]
    assert modes == [0o600, 0o660]
    assert sorted(each.name for each in folder.iterdir()) == ["own", "shared"]


def test_the_command_makes_it_and_takes_it_away(
    start_keyheat: StartKeyheat, valkey: str, folder: Path
) -> None:
    path = folder / "s"
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(path))
    left_over.close()
    words = ("--upstream", f"redis://{valkey}", "--listen", "127.0.0.1:0", "--http", "none")
    running = start_keyheat("up", *words, "--unix-socket", str(path))
    assert running.stdout is not None
    assert f"and unix://{path}" in running.stdout.readline()
    with redis.Redis(unix_socket_path=str(path)) as client:
        assert client.ping()
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--unix-socket", "/nowhere/" + "x" * 100), "at most 95 bytes"),
        (("--unix-socket", "/nowhere/at/all/s"), "/nowhere/at/all/s"),
        (("--unix-socket", "s", "--unix-socket-mode", "rw"), "unix_socket_mode"),
    ],
)
def test_a_path_that_cannot_be_is_named(
    keyheat: RunKeyheat, valkey: str, words: tuple[str, ...], says: str
) -> None:
    common = ("up", "--upstream", f"redis://{valkey}", "--listen", "127.0.0.1:0", "--http", "none")
    ran = keyheat(*common, *words)
    assert ran.returncode != 0
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr


def test_one_in_use_is_not_taken(
    proxy_factory: ProxyFactory, keyheat: RunKeyheat, valkey: str, folder: Path
) -> None:
    path = folder / "s"
    proxy_factory(valkey, unix_socket=str(path))
    common = ("up", "--upstream", f"redis://{valkey}", "--listen", "127.0.0.1:0", "--http", "none")
    ran = keyheat(*common, "--unix-socket", str(path))
    assert ran.returncode == 1
    assert "in use" in ran.stderr
    with redis.Redis(unix_socket_path=str(path)) as client:
        assert client.ping()
