"""A proxy is replaced, and then left out, under the load of real redis-py clients.

    .venv/bin/python -m tests.soak.rolling_upgrade

Three upgrades (start the successor at the same address, SIGTERM the old one), the cache switched off and on
by a reload, then the way back: a relay of bytes (HAProxy, `mode tcp`) takes the address, the proxy is ended,
and clients are at the server itself; and the proxy comes again. Half of the clients are redis-py as it comes,
half try nothing again, so that what the first do not notice is seen; of each, half connect anew every few
requests. Prints a table; 1 if a client as it comes saw an error, a reply was wrong or an acknowledged write
is not there.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyheat.server import child
from keyheat.server.binary import find_binary
from keyheat.server.embedded import EmbeddedServer, free_ports
from tests.soak.procs import ProxyProcess

CLIENTS = 8
# Copies bytes and knows no command; it shares the address as the proxies do.
RELAY = """\
global
  nbthread 1
  hard-stop-after 10s
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen cache
  bind {listen}
  server itself {server}
"""


@dataclass
class Client:
    """One redis-py client in a thread: SET, GET and INCR of keys of its own, GET of a hot key."""

    port: int
    number: int
    tries_again: bool
    connects_anew: bool
    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)
    counted: int = 0

    def __post_init__(self) -> None:
        """Begin."""
        options = {} if self.tries_again else {"retry": Retry(NoBackoff(), 0)}
        self._redis = redis.Redis(port=self.port, decode_responses=True, **options)  # type: ignore[arg-type]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def counter(self) -> str:
        """The key of its counter."""
        return f"counter:{self.number}"

    def stop(self) -> None:
        """End."""
        self._over.set()
        self._thread.join(30)
        self._redis.close()

    def _run(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            for step in (self._own, self._count, self._hot):
                began = time.monotonic()
                try:
                    step(number)
                    self.done["requests"] += 1
                except redis.RedisError as error:
                    self.errors[f"{type(error).__name__}: {error}"] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            if self.connects_anew:
                self._redis.connection_pool.disconnect()
            time.sleep(0.001)

    def _own(self, number: int) -> None:
        key, value = f"own:{self.number}", f"{self.number}:{number}"
        self._redis.set(key, value)
        if (seen := self._redis.get(key)) != value:
            self.wrong.append(f"wrote {value}, read {seen!r}")

    def _count(self, _number: int) -> None:
        self._redis.incr(self.counter)
        self.counted += 1

    def _hot(self, _number: int) -> None:
        if (seen := self._redis.get("hot")) != "on sale":
            self.wrong.append(f"the hot key is {seen!r}")


class Report:
    """What the clients saw in each step."""

    def __init__(self, clients: list[Client]) -> None:
        self._clients = clients
        self.is_bad = False
        say("| step | took | requests | slowest | errors: redis-py as it comes | nothing tried again |")
        say("| --- | ---: | ---: | ---: | --- | --- |")

    @contextlib.contextmanager
    def step(self, name: str, settle_s: float = 1.5) -> Iterator[None]:
        """Count what is seen from now until a little after the step."""
        for client in self._clients:
            client.done.clear()
            client.errors.clear()
            client.slowest_s = 0.0
        began = time.monotonic()
        yield
        took_s = time.monotonic() - began
        time.sleep(settle_s)
        by = {again: [each for each in self._clients if each.tries_again is again] for again in (True, False)}
        seen = {again: sum((each.errors for each in some), Counter[str]()) for again, some in by.items()}
        self.is_bad |= bool(seen[True])
        slowest = max(each.slowest_s for each in self._clients)
        say(
            f"| {name} | {took_s:.2f} s | {sum(each.done['requests'] for each in self._clients):,} "
            f"| {slowest * 1e3:.0f} ms | {_told(seen[True])} | {_told(seen[False])} |"
        )


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _told(errors: Counter[str]) -> str:
    return "; ".join(f"{count} × {text}" for text, count in errors.items()) or "none"


class Relay:
    """HAProxy at the clients' address, before the server."""

    def __init__(self, directory: Path, listen: str, server: str) -> None:
        path = directory / "way-back.cfg"
        path.write_text(RELAY.format(listen=listen, server=server))
        program = shutil.which("haproxy", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
        assert program is not None
        with (directory / "haproxy.log").open("wb") as log:
            self.process = child.spawn([program, "-db", "-f", str(path)], cwd=str(directory), log=log)
        time.sleep(0.5)
        assert self.process.poll() is None, (directory / "haproxy.log").read_text()

    def finish(self) -> None:
        """SIGUSR1: it accepts nobody, and ends once those it has are gone."""
        self.process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        """End it."""
        child.end(self.process)


def replace(directory: Path, old: ProxyProcess, make: Callable[[], ProxyProcess]) -> ProxyProcess:
    """The rolling upgrade of one proxy: the successor serves before the old one is told to end."""
    new = make()
    old.terminate()
    status = old.process.wait(20)
    assert status == 0, f"the old proxy ended with {status}: {old.log()[-300:]} in {directory}"
    return new


def play(directory: Path, stack: contextlib.ExitStack) -> bool:
    """All steps; whether anything was wrong."""
    server = stack.enter_context(EmbeddedServer(binary=find_binary(prefer_wheel=True)))
    with server.client() as admin:
        admin.set("hot", "on sale")
    port = free_ports(1)[0]
    settings = {"listen": f"127.0.0.1:{port}", "reuse_port": True}

    def make() -> ProxyProcess:
        return stack.enter_context(ProxyProcess(directory, server.url, **settings))  # type: ignore[arg-type]

    proxy = make()
    clients = [
        Client(port, number, tries_again=number % 2 == 0, connects_anew=number % 4 > 1)
        for number in range(CLIENTS)
    ]
    report = Report(clients)
    with report.step("calm"):
        time.sleep(1.5)
    for number in (1, 2, 3):
        with report.step(f"upgrade {number}"):
            proxy = replace(directory, proxy, make)
    with report.step("cache off, by SIGHUP"):
        proxy.reload(local_cache=False)
    with report.step("cache on, by SIGHUP"):
        proxy.reload(local_cache=True)
    if shutil.which("haproxy", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])):
        _way_back(directory, report, proxy, make, server.address, port)
    else:
        say("the way back: needs haproxy (Debian: haproxy)")
    for client in clients:
        client.stop()
    return report.is_bad | _is_wrong(server, clients)


def _way_back(
    directory: Path,
    report: Report,
    proxy: ProxyProcess,
    make: Callable[[], ProxyProcess],
    server: str,
    port: int,
) -> None:
    """The relay takes the address and the proxy ends; then the proxy comes again."""
    with report.step("the way back"):
        relay = Relay(directory, f"127.0.0.1:{port}", server)
        proxy.terminate()
        status = proxy.process.wait(20)
        assert status == 0, status
    with report.step("at the server itself"):
        time.sleep(1.5)
    with report.step("the proxy again"):
        make()
        relay.finish()
        time.sleep(0.5)
        relay.close()


def _is_wrong(server: EmbeddedServer, clients: list[Client]) -> bool:
    wrong = [text for client in clients for text in client.wrong]
    for client in clients:
        with server.client() as admin:
            kept = int(admin.get(client.counter) or 0)
        if kept < client.counted:
            wrong.append(f"{client.counter}: {client.counted} were acknowledged, {kept} are there")
        if kept > client.counted:
            say(f"{client.counter}: {kept - client.counted} carried out and not acknowledged, or tried again")
    for text in wrong[:5]:
        say(f"WRONG {text}")
    say(f"{sum(client.counted for client in clients):,} acknowledged INCR, {len(wrong)} wrong")
    return bool(wrong)


def main() -> int:
    """Play it; 1 if anything was wrong."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory(prefix="keyheat-upgrade-") as name, contextlib.ExitStack() as stack:
        return int(play(Path(name), stack))


if __name__ == "__main__":
    sys.exit(main())
