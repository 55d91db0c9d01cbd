"""What an idle client costs the proxy in memory, in plain text and over TLS: python benches/idle_clients.py.

Prints KiB of resident memory per client, the kernel's socket buffers not counted.
"""

import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from keyheat.server.embedded import EmbeddedServer

CLIENTS = 400
# Memory that is given back once a client is silent is given back by then.
SETTLE_S = 3.0


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
    stream.sendall(b"PING\r\n")
    stream.recv(100)
    return stream


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


def main() -> None:
    """Start a server and a proxy, and count."""
    with tempfile.TemporaryDirectory() as name, EmbeddedServer() as server:
        certificate, key = Path(name) / "c.pem", Path(name) / "c.key"
        made = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        more = ("-subj", "/CN=localhost", "-days", "1", "-keyout", str(key), "-out", str(certificate))
        subprocess.run(["openssl", *made, *more], check=True, capture_output=True)  # noqa: S607
        tls = ("--tls-listen", "127.0.0.1:0", "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
        words = ("proxy", "--listen", "127.0.0.1:0", "--http", "none", "--upstream", server.address, *tls)
        command = [sys.executable, "-m", "keyheat.cli", *words, "--shards", "1", "--log", "error"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as proxy:
            line = proxy.stdout.readline() if proxy.stdout is not None else ""
            plain, encrypted = map(int, re.findall(r":(\d+)", line)[:2])
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            print(f"plain {cost_kib(proxy.pid, plain, None):.1f} KiB per client")
            print(f"TLS   {cost_kib(proxy.pid, encrypted, context):.1f} KiB per client")
            proxy.terminate()


if __name__ == "__main__":
    main()
