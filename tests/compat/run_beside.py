"""Run any command against a server, or through a proxy in front of one in which every key is hot.

    python -m tests.compat.run_beside -- redis-cli -p {port} ping
    python -m tests.compat.run_beside --directly -- redis-cli -p {port} ping
    python -m tests.compat.run_beside --cluster --port 7000 -- make test

`{port}` and `{url}` in the command stand for the address; so do $PORT and $URL in its environment. Suites of
docs/reference/compatibility.md that have no runner of their own are run with this: once directly, once
through the proxy, with everything else the same. It ends with the command's exit code.
"""

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack
from urllib.parse import urlsplit

from keyheat.server.binary import find_binary
from tests.compat import servers


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    asked = _parser().parse_args(arguments)
    binary = asked.server or find_binary(prefer_wheel=True)
    with ExitStack() as stack:
        server = stack.enter_context(
            servers.running(
                binary,
                is_cluster=asked.cluster,
                port=asked.port if asked.directly else None,
                config=dict(line.split("=", 1) for line in asked.config),
            )
        )
        if not asked.directly:
            server = stack.enter_context(servers.through_proxy(server, port=asked.port or 0))
        port = str(urlsplit(server.url).port)
        places = {"{port}": port, "{url}": server.url}
        words = [_filled(word, places) for word in asked.command]
        variables = {**os.environ, "PORT": port, "URL": server.url}
        return subprocess.run(words, env=variables, check=False).returncode


def _filled(word: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directly", action="store_true", help="without a proxy")
    parser.add_argument("--cluster", action="store_true", help="three primaries with a replica each")
    parser.add_argument("--port", type=int, help="where the command finds it; any free port if not said")
    parser.add_argument("--server", help="a program instead of the Valkey of the wheel")
    parser.add_argument(
        "--config", action="append", default=[], metavar="NAME=VALUE", help="a directive of the servers"
    )
    parser.add_argument("command", nargs="+", help="what to run, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
