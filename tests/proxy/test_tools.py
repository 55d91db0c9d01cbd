"""The tools that come with the servers work through the proxy as they are."""

import shutil
import subprocess
from typing import Any

import pytest

from keyheat.server.cluster import EmbeddedCluster


@pytest.fixture(params=["standalone", "cluster"])
def proxy(request: pytest.FixtureRequest, proxy_factory: Any) -> Any:
    """A proxy before a server, and before a Cluster."""
    if request.param == "standalone":
        return proxy_factory(request.getfixturevalue("valkey"))
    cluster: EmbeddedCluster = request.getfixturevalue("cluster")
    return proxy_factory(cluster.url)


def run(program: str, proxy: Any, *words: str, given: str | None = None) -> str:
    """Run a tool against the proxy; skip where it is not installed."""
    for name in (f"redis-{program}", f"valkey-{program}"):
        path = shutil.which(name)
        if path:
            break
    else:
        pytest.skip(f"needs redis-{program} or valkey-{program} (Debian: redis-tools)")
    host, port = proxy.listen.rsplit(":", 1)
    done = subprocess.run(
        [path, "-h", host, "-p", port, *words],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("protocol", ["-2", "-3"])
def test_the_command_line_client_works(proxy: Any, protocol: str) -> None:
    assert run("cli", proxy, protocol, "set", "k", "v") == "OK\n"
    assert run("cli", proxy, protocol, "get", "k") == "v\n"
    assert "valkey_version" in run("cli", proxy, protocol, "info", "server")
    script = "multi\nset {t}a 1\nincr {t}a\nexec\nhset h f v\nhgetall h\n"
    assert run("cli", proxy, protocol, given=script).split() == [
        "OK",
        "QUEUED",
        "QUEUED",
        "OK",
        "2",
        "1",
        "f",
        "v",
    ]
    for i in range(50):
        run("cli", proxy, "set", f"scan:{i}", "x") if i % 10 == 0 else None
    assert len(run("cli", proxy, "--scan", "--pattern", "scan:*").split()) == 5
    assert "Biggest string" in run("cli", proxy, "--bigkeys")


def test_pipe_mode_loads(proxy: Any) -> None:
    lines = "".join(f"SET pipe:{i} {i}\r\n" for i in range(2000))
    out = run("cli", proxy, "--pipe", given=lines)
    assert "errors: 0, replies: 2000" in out
    assert run("cli", proxy, "get", "pipe:1999") == "1999\n"


@pytest.mark.parametrize("pipeline", ["1", "16"])
def test_the_benchmark_runs_all_its_tests(proxy: Any, pipeline: str) -> None:
    out = run("benchmark", proxy, "-n", "2000", "-P", pipeline, "-c", "20", "-r", "1000", "--csv")
    assert out.count("\n") >= 18
    for name in ("GET", "SET", "INCR", "LPUSH", "SADD", "HSET", "ZADD", "LRANGE_100", "MSET"):
        assert f'"{name}' in out
    assert "rror" not in out
