"""What clients that say nothing cost the proxy in memory, and whether it holds ten thousand of them.

    .venv/bin/python benches/idle_clients.py

Prints KiB of resident memory per idle client in plain text and over TLS, the kernel's socket buffers not
counted; then 10,000 idle clients stay connected while 500 busy ones ask, and each of them asks in the end.
"""

import contextlib
import os
import re
import resource
import selectors
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from keyheat.server.embedded import EmbeddedServer

CLIENTS: Final = 400
IDLE: Final = 10_000
BUSY: Final = 500
BUSY_S: Final = 5.0
TARGET_KIB: Final = 20.0
# Memory that is given back once a client is silent is given back by then.
SETTLE_S: Final = 3.0
_REQUEST: Final = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"
_ANSWER: Final = b"$1\r\nv\r\n"


def resident_kib(pid: int) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) if found else 0


def connected(port: int, context: ssl.SSLContext | None) -> socket.socket:
    """A client that has asked once."""
    stream = socket.create_connection(("127.0.0.1", port), timeout=10)
    if context is not None:
        stream = context.wrap_socket(stream, server_hostname="localhost")
    is_answered(stream)
    return stream


def is_answered(stream: socket.socket) -> bool:
    """Whether a client that asks gets the answer."""
    stream.sendall(b"PING\r\n")
    return stream.recv(100) == b"+PONG\r\n"


def cost_kib(pid: int, port: int, context: ssl.SSLContext | None) -> float:
    """Memory per client; the first few pay for what all share."""
    streams = [connected(port, context) for _ in range(50)]
    time.sleep(SETTLE_S)
    before = resident_kib(pid)
    streams += [connected(port, context) for _ in range(CLIENTS)]
    time.sleep(SETTLE_S)
    cost = (resident_kib(pid) - before) / CLIENTS
    for stream in streams:
        stream.close()
    return cost


def ask_all(streams: list[socket.socket], seconds: float) -> tuple[int, int]:
    """All of them ask again as soon as they are answered; requests answered, and clients that were not."""
    answered, last = 0, dict.fromkeys(streams, 0)
    with selectors.DefaultSelector() as selector:
        of = {stream.fileno(): stream for stream in streams}
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
            stream.sendall(_REQUEST)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for key, _ in selector.select(0.1):
                stream = of[key.fd]
                if stream.recv(100) != _ANSWER:
                    selector.unregister(stream)
                    last[stream] = -1
                    continue
                answered += 1
                last[stream] += 1
                stream.sendall(_REQUEST)
    return answered, sum(count < 1 for count in last.values())


def held(pid: int, port: int) -> None:
    """Hold the many, and say how it went."""
    before = resident_kib(pid)
    idle = [connected(port, None) for _ in range(IDLE)]
    time.sleep(SETTLE_S)
    cost = (resident_kib(pid) - before) / IDLE
    busy = [connected(port, None) for _ in range(BUSY)]
    answered, failed = ask_all(busy, BUSY_S)
    lost = 0
    for stream in idle:
        try:
            lost += not is_answered(stream)
        except OSError:
            lost += 1
    for stream in (*idle, *busy):
        stream.close()
    is_held = lost == failed == 0 and cost <= TARGET_KIB
    print(
        f"{IDLE:,} idle and {BUSY} busy: {lost} and {failed} lost, {cost:.1f} KiB per idle client, "
        f"{answered / BUSY_S:,.0f} requests/s   target: none lost, ≤ {TARGET_KIB:.0f}   {_verdict(is_held)}"
    )


def _verdict(is_met: bool) -> str:
    return "PASS" if is_met else "MISS"


@contextlib.contextmanager
def started(directory: Path, upstream: str) -> Iterator[tuple[int, int, int]]:
    """A proxy of one shard: process id, port, port for TLS."""
    certificate, key = directory / "c.pem", directory / "c.key"
    made = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    more = ("-subj", "/CN=localhost", "-days", "1", "-keyout", str(key), "-out", str(certificate))
    subprocess.run(["openssl", *made, *more], check=True, capture_output=True)  # noqa: S607
    tls = ("--tls-listen", "127.0.0.1:0", "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    words = ("proxy", "--listen", "127.0.0.1:0", "--http", "none", "--upstream", upstream, *tls)
    limits = ("--shards", "1", "--log", "error", "--clients-max", str(IDLE + BUSY + 1000))
    command = [sys.executable, "-m", "keyheat.cli", *words, *limits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as proxy:
        try:
            line = proxy.stdout.readline() if proxy.stdout is not None else ""
            plain, encrypted = map(int, re.findall(r":(\d+)", line)[:2])
            yield proxy.pid, plain, encrypted
        finally:
            proxy.terminate()


def main() -> None:
    """Start a server and a proxy, and count."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = IDLE + BUSY + 500
    with tempfile.TemporaryDirectory() as name, EmbeddedServer() as server, server.client() as client:
        client.set("k", "v")
        with started(Path(name), server.address) as (pid, plain, encrypted):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            for kind, port, its in (("plain", plain, None), ("TLS", encrypted, context)):
                cost = cost_kib(pid, port, its)
                verdict = _verdict(cost <= TARGET_KIB)
                print(f"{kind:5} {cost:.1f} KiB per idle client   target: ≤ {TARGET_KIB:.0f}   {verdict}")
            if 0 <= hard < wanted:
                print(f"{IDLE:,} clients: needs a limit of {wanted:,} open files (ulimit -Hn), here {hard:,}")
                return
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else hard, hard))
            held(pid, plain)


if __name__ == "__main__":
    main()
