"""Fixtures every test may use: real servers, real proxies, and nothing left behind.

Servers come from the wheel by preference, so a run does not depend on what is installed. Session
fixtures are shared: a test that kills, pauses or reconfigures takes the `own_` variant.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyheat.proxy.settings import upstream_json
from keyheat.proxy.url import parse_url
from keyheat.server.binary import find_binary
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer, free_ports

if TYPE_CHECKING:
    from keyheat._keyheat import Proxy

CLI_TIMEOUT_S = 60.0


def pytest_configure() -> None:
    """Have Ctrl-C reach the commands that tests start, also where the run itself is in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server_binary() -> str:
    """The server program all tests use."""
    return find_binary(prefer_wheel=True)


@pytest.fixture(scope="session")
def server(server_binary: str) -> Iterator[EmbeddedServer]:
    """A standalone server, shared by the whole run."""
    with EmbeddedServer(binary=server_binary) as running:
        yield running


@pytest.fixture
def own_server(server_binary: str) -> Iterator[EmbeddedServer]:
    """A standalone server of this test alone, to be killed, paused or reconfigured."""
    with EmbeddedServer(binary=server_binary) as running:
        yield running


@pytest.fixture
def valkey(server: EmbeddedServer) -> str:
    """`host:port` of the shared standalone server, emptied."""
    with server.client() as client:
        client.flushall()
    return server.address


@pytest.fixture(scope="session")
def session_cluster(server_binary: str) -> Iterator[EmbeddedCluster]:
    """Three primaries, shared by the whole run."""
    with EmbeddedCluster(3, binary=server_binary) as running:
        yield running


@pytest.fixture
def cluster(session_cluster: EmbeddedCluster) -> EmbeddedCluster:
    """The shared Cluster, emptied: not to be killed or paused."""
    for node in session_cluster.primaries:
        with node.client() as client:
            client.flushall()
    return session_cluster


@pytest.fixture
def own_cluster(server_binary: str) -> Iterator[EmbeddedCluster]:
    """Three primaries with a replica each and a short node timeout, of this test alone."""
    with EmbeddedCluster(3, 1, node_timeout_ms=1500, binary=server_binary) as running:
        yield running


ProxyFactory = Callable[..., "Proxy"]


@pytest.fixture
def proxy_factory() -> Iterator[ProxyFactory]:
    """Make a started proxy: `proxy_factory(upstream, **settings)`; it is stopped after the test.

    `upstream` is a URL, or `host:port`, or several separated by commas. Both ports are free ones
    unless the settings say otherwise (`http=None` for no http).
    """
    from keyheat._keyheat import Proxy  # noqa: PLC0415 - only tests of the proxy need it built

    running: list[Proxy] = []

    def make(upstream: str, /, **settings: Any) -> Proxy:
        whole = {
            "listen": "127.0.0.1:0",
            "http": "127.0.0.1:0",
            "upstream": upstream_json(parse_url(upstream, is_for_proxy=True)),
            "log": "error",
            # More than one, however few cores there are.
            "shards": 2,
            **settings,
        }
        proxy = Proxy(json.dumps(whole))
        proxy.start()
        running.append(proxy)
        return proxy

    yield make
    for proxy in running:
        proxy.stop()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Poll until something is so: `eventually(lambda: …)` returns its first truthy value.

    A busy machine gets its time: a test that passes never waits for the deadline.
    """

    def poll(what: Callable[[], Any], timeout_s: float = 30.0, every_s: float = 0.01) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := what()):
            assert time.monotonic() < deadline, f"not so within {timeout_s:g} s"
            time.sleep(every_s)
        return value

    return poll


RunKeyheat = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def keyheat() -> RunKeyheat:
    """Run the command: `keyheat("doctor", url)`."""

    def run(*words: str, timeout_s: float = CLI_TIMEOUT_S, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            keyheat_command(*words),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
        )

    return run


StartKeyheat = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_keyheat() -> Iterator[StartKeyheat]:
    """Start the command and leave it running: `start_keyheat("up")`; killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, **env: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            keyheat_command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def keyheat_command(*words: str) -> list[str]:
    """The command line of the installed `keyheat`, in this interpreter."""
    return [sys.executable, "-m", "keyheat.cli", *words]


@pytest.fixture
def children() -> Callable[[int], set[int]]:
    """All living descendants of a process, by id."""

    def living(pid: int) -> set[int]:
        found: set[int] = set()
        for path in Path("/proc").glob(f"{pid}/task/*/children"):
            try:
                direct = {int(word) for word in path.read_text().split()}
            except OSError:
                continue
            found |= direct
            for each in direct:
                found |= living(each)
        return found

    return living


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens."""
    return free_ports(1)[0]
