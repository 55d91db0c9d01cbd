"""Measures staleness from outside: a writer that numbers its writes, readers that note the time.

Staleness of a read is its *start* minus the moment at which the first newer write had been
acknowledged. The writer runs in a process of its own and writes to the server itself, past the
proxy, so the proxy learns of a write only by its invalidation.
"""

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Self

_WRITER = r"""
import json, socket, sys, time
host, port, key, per_s = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode(), float(sys.argv[4])
clock = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)
s = socket.create_connection((host, port)); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
import select
n = 0; acked = []
while True:
    n += 1
    value = b"%d" % n
    s.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value))
    reply = s.recv(4096)
    if reply != b"+OK\r\n":
        break
    acked.append(clock())
    if n == 1:
        print("go", flush=True)
    if select.select([sys.stdin], [], [], 1 / per_s)[0]:
        break
print(json.dumps(acked), flush=True)
"""


def now_ns() -> int:
    """The clock of writer and readers."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass
class Verdict:
    """What was measured."""

    reads: int
    stale_max_ms: float
    errors: int
    newest: int


@dataclass
class Watch:
    """Reads `key` through `proxy` in threads while a process rewrites it at `server`."""

    proxy: str
    server: str
    key: str = "hot"
    writes_per_s: float = 10.0
    threads: int = 4
    _reads: list[tuple[int, int]] = field(default_factory=list)
    _errors: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        """Start writing and reading."""
        host, port = self.server.rsplit(":", 1)
        command = [sys.executable, "-c", _WRITER, host, port, self.key, str(self.writes_per_s)]
        self._writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._writer.stdout is not None
        assert self._writer.stdout.readline() == "go\n"
        self._readers = [threading.Thread(target=self._read, daemon=True) for _ in range(self.threads)]
        for each in self._readers:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Make sure that nothing goes on."""
        self._over.set()
        self._writer.kill()
        self._writer.communicate()

    def verdict(self) -> Verdict:
        """End, and say what was seen."""
        self._over.set()
        for each in self._readers:
            each.join(10)
        out, _ = self._writer.communicate("stop\n", timeout=10)
        acked: list[int] = json.loads(out.splitlines()[-1])
        worst = 0
        for started, number in self._reads:
            # acked[number] is when write number + 1, the first newer one, was acknowledged.
            if number < len(acked):
                worst = max(worst, started - acked[number])
        newest = max((number for _, number in self._reads), default=0)
        return Verdict(len(self._reads), worst / 1e6, self._errors, newest)

    @property
    def reads(self) -> int:
        """Reads answered so far."""
        return len(self._reads)

    def _read(self) -> None:
        host, port = self.proxy.rsplit(":", 1)
        key = self.key.encode()
        request = b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key)
        with socket.create_connection((host, int(port))) as s:
            s.settimeout(0.2)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self._over.is_set():
                started = now_ns()
                s.sendall(request)
                reply = b""
                while not reply.endswith(b"\r\n") or (reply[:1] == b"$" and reply.count(b"\r\n") < 2):
                    try:
                        reply += s.recv(4096)
                    except TimeoutError:
                        if self._over.is_set():
                            return
                if reply[:1] == b"$":
                    self._reads.append((started, int(reply.split(b"\r\n")[1])))
                else:
                    self._errors += 1


class Hammer:
    """Sends one request over and over from threads, so that fills are under way when a write passes."""

    def __init__(self, proxy: str, request: bytes, threads: int = 3) -> None:
        self._address = proxy.rsplit(":", 1)
        self._request = request
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        """Begin."""
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        for each in self._threads:
            each.join()

    def _run(self) -> None:
        with socket.create_connection((self._address[0], int(self._address[1]))) as s:
            while not self._over.is_set():
                s.sendall(self._request * 8)
                s.recv(4096)
