"""A `redis-server` with a proxy before it, for suites that start servers themselves.

A two-line script of that name, first in PATH, puts it in the place of the real one:

    #!/bin/sh
    exec python -m tests.compat.stand_in "$@"

The server is started at another port, with everything else as asked, and a proxy in which every key is hot at
the port, the TLS port or the Unix socket that was asked for. Nodes of a Cluster, Sentinels, and what names
none of the three (`--version`, a configuration file) become the real server, and everything does with
$KEYHEAT_STAND_IN=directly. For a Cluster whose nodes run already (`--requirepass` says their password):

    python -m tests.compat.stand_in --before 127.0.0.1:7000 --port 6380

It ends when it is killed, and the server with it.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import time
from typing import Any, Final

from keyheat.server import child
from keyheat.server.binary import find_binary
from tests.compat.servers import HOT_AT_ONCE

VARIABLE: Final = "KEYHEAT_STAND_IN"
_LISTENING: Final = {"--port", "--bind", "--unixsocket", "--unixsocketperm", "--tls-port"}
_TLS_FILES: Final = {
    "--tls-cert-file": "tls_cert_file",
    "--tls-key-file": "tls_key_file",
    "--tls-ca-cert-file": "tls_client_ca_file",
}


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    words = sys.argv[1:] if arguments is None else arguments
    options = _options(words)
    password = options.get("--requirepass", [None])[0]
    if before := options.get("--before"):
        return _serve(_settings(options, upstream=before[0], password=password))
    binary = find_binary(prefer_wheel=True)
    is_real = os.environ.get(VARIABLE) == "directly" or not _can_stand_in(words, options)
    if is_real:
        os.execv(binary, [binary, *words])  # noqa: S606 - the arguments are a command line already
    port = _free_port()
    server = [binary, "--port", str(port), "--bind", "127.0.0.1"]
    for name, values in options.items():
        if name not in _LISTENING and not name.startswith("--tls-"):
            server += [name, *values]
    process = child.spawn(server, cwd=tempfile.gettempdir(), log=sys.stderr.buffer)
    try:
        _wait_listening(port)
        return _serve(_settings(options, upstream=f"127.0.0.1:{port}", password=password))
    finally:
        child.end(process)


def _options(words: list[str]) -> dict[str, list[str]]:
    """Option → its values, as they stand on the command line."""
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            values = found[word] = []
        else:
            values.append(word)
    return found


def _can_stand_in(words: list[str], options: dict[str, list[str]]) -> bool:
    return (
        bool(words)
        and words[0].startswith("--")
        and any(name in options for name in ("--port", "--unixsocket", "--tls-port"))
        and "--sentinel" not in options
        and options.get("--cluster-enabled") != ["yes"]
    )


def _settings(options: dict[str, list[str]], *, upstream: str, password: str | None = None) -> dict[str, Any]:
    """Those of the proxy, which listens where the server was asked to."""
    host = options.get("--bind", ["127.0.0.1"])[0]
    port = options.get("--port", ["0"])[0]
    settings: dict[str, Any] = {
        "listen": None if port == "0" else f"{host}:{port}",
        "http": None,
        "log": "error",
        "upstream": {"addresses": [upstream], "password": password},
        "rules": HOT_AT_ONCE,
        "auth": "pass_through",
        "shards": 2,
    }
    if path := options.get("--unixsocket"):
        settings["unix_socket"] = path[0]
    if tls := options.get("--tls-port"):
        settings["tls_listen"] = f"{host}:{tls[0]}"
        files = {setting: options[name][0] for name, setting in _TLS_FILES.items() if name in options}
        if options.get("--tls-auth-clients") == ["no"]:
            del files["tls_client_ca_file"]
        settings |= files
    return settings


def _serve(settings: dict[str, Any]) -> int:
    from keyheat._keyheat import Proxy  # noqa: PLC0415 - only what stands in needs it built

    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    proxy = Proxy(json.dumps(settings))
    proxy.start()
    try:
        signal.sigwait(ends)
    finally:
        proxy.stop()
    return 0


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_listening(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())
