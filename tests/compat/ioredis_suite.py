"""Run ioredis' own tests against a server and through a proxy, and compare.

    python -m tests.compat.ioredis_suite --mode standalone
    python -m tests.compat.ioredis_suite --mode cluster
    python -m tests.compat.ioredis_suite --mode standalone --grep pub

A test that passes against the server itself must pass through the proxy; that is all that is asked. ioredis
is an independent client in another language: what redis-py and keyheat's own tests take for granted, it may
not.

None of its code is in this repository. Its tests come from a clone of the release below, made in
`.cache/compat/ioredis`, or from the directory that $KEYHEAT_IOREDIS names; they need git, Node 20 and npm.
Files that speak to a mock server are left out: no server, and so no proxy, has a part in them. The tests name
fixed ports, which are led to ours (`plugins/ioredis_ports.cjs`). What is left out besides is in
`ioredis_skips.toml`, with a reason each. The exit code is 1 if a test that passed directly did not through
the proxy.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from keyheat.server.binary import find_binary
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.compat.environment import CACHE, HERE
from tests.compat.servers import Server, through_proxy

RELEASE: Final = "v6.0.0"
SOURCE_VARIABLE: Final = "KEYHEAT_IOREDIS"
SKIPS: Final = HERE / "ioredis_skips.toml"
_REPOSITORY: Final = "https://github.com/redis/ioredis"
_HOME: Final = CACHE / "ioredis"
_NEEDED: Final = (
    "@types/node", "chai", "chai-as-promised", "mocha", "server-destroy", "sinon", "ts-node", "typescript",
    "uuid",
)  # fmt: skip
# The ports that the tests name.
_PORTS: Final = {"standalone": ["6379"], "cluster": [str(port) for port in range(3000, 3006)]}
_FOLDERS: Final = {"standalone": "test/functional", "cluster": "test/cluster"}


def prepare() -> Path:
    """Make what is missing of the tests and what they need; the second time takes no time."""
    done = _HOME / ".ready"
    given = os.environ.get(SOURCE_VARIABLE)
    wanted = given or RELEASE
    if done.exists() and done.read_text() == wanted:
        return _HOME
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    shutil.rmtree(_HOME, ignore_errors=True)
    if given:
        shutil.copytree(given, _HOME, ignore=shutil.ignore_patterns("node_modules", ".git"))
    else:
        _run("git", "clone", "--quiet", "--depth=1", f"--branch={RELEASE}", _REPOSITORY, str(_HOME))
    package = json.loads((_HOME / "package.json").read_text())
    package["devDependencies"] = {name: package["devDependencies"][name] for name in _NEEDED}
    (_HOME / "package.json").write_text(json.dumps(package))
    (_HOME / "package-lock.json").unlink(missing_ok=True)
    _run("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", cwd=_HOME)
    done.write_text(wanted)
    return _HOME


def _run(*words: str, cwd: Path | None = None) -> None:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]} {words[1]} failed:\n{done.stderr.strip()}")


@contextmanager
def servers(mode: str, binary: str) -> Iterator[tuple[Server, list[int]]]:
    """The servers that the tests expect, and the ports of them."""
    config = {"enable-debug-command": "yes"}
    if mode == "cluster":
        with EmbeddedCluster(3, 1, config=config, binary=binary) as cluster:
            yield _named(cluster.primaries[0]), [node.port for node in cluster.nodes]
    else:
        with EmbeddedServer(config, binary=binary) as server:
            yield _named(server), [server.port]


def _named(server: EmbeddedServer) -> Server:
    return Server(f"redis://localhost:{server.port}/0", "valkey")


def files(home: Path, mode: str) -> list[str]:
    """The test files in which a server has a part."""
    found = sorted((home / _FOLDERS[mode]).rglob("*.ts"))
    return [str(path.relative_to(home)) for path in found if "MockServer" not in path.read_text()]


def execute(
    home: Path, mode: str, ports: list[int], grep: str | None, left_out: Iterable[str] = ()
) -> dict[str, str]:
    """Run the tests; how each ended."""
    named = _PORTS[mode]
    lead = dict(zip(named, ports if len(ports) == len(named) else ports * len(named), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        words = ["npx", "mocha", "--no-config", "--exit", "--timeout=8000", "--require=ts-node/register"]
        words += [f"--require={HERE / 'plugins' / 'ioredis_ports.cjs'}"]
        words += ["--reporter=json", f"--reporter-option=output={out}"]
        words += [*(["--grep", grep] if grep else []), *helpers(mode), *files(home, mode)]
        variables = {
            **os.environ,
            "KEYHEAT_COMPAT_PORTS": json.dumps(lead),
            "KEYHEAT_COMPAT_LEFT_OUT": json.dumps(sorted(left_out)),
            "TS_NODE_TRANSPILE_ONLY": "true",
            "NODE_ENV": "test",
        }
        done = subprocess.run(words, cwd=home, env=variables, capture_output=True, text=True, check=False)
        if not out.exists():
            raise SystemExit(f"mocha did not end well:\n{done.stderr[-2000:]}{done.stdout[-2000:]}")
        return ends(json.loads(out.read_text()))


def helpers(mode: str) -> list[str]:
    """What the tests share; that of single servers empties one after each test."""
    return ["test/helpers/global.ts"] if mode == "standalone" else []


def ends(results: dict[str, Any]) -> dict[str, str]:
    """Test → how it ended, and why if it failed. Tests of one name are numbered."""
    found: dict[str, str] = {}
    pending = {id(test) for test in results["pending"]}
    counts: Counter[str] = Counter()
    passed = {(test["file"], test["fullTitle"]) for test in results["passes"]}
    skipped = {(test["file"], test["fullTitle"]) for test in results["pending"]}
    for test in results["tests"]:
        place = (test["file"], test["fullTitle"])
        name = test["fullTitle"]
        counts[name] += 1
        name = name if counts[name] == 1 else f"{name} #{counts[name]}"
        if place in skipped or id(test) in pending:
            found[name] = "skipped"
        elif test["err"] or place not in passed:
            found[name] = f"failed ({test['err'].get('message', 'no reason given')[:200]})"
        else:
            found[name] = "passed"
    return found


def load_skips(mode: str) -> dict[str, str]:
    """Test → why it is left out."""
    entries = tomllib.loads(SKIPS.read_text())["skip"]
    return {test: entry["reason"] for entry in entries if mode in entry["modes"] for test in entry["tests"]}


def say(line: str) -> None:
    """Tell a person."""
    sys.stderr.write(line + "\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=_PORTS, required=True)
    parser.add_argument("--grep", help="only these tests, as mocha's --grep")
    asked = parser.parse_args(arguments)
    home = prepare()
    binary = find_binary(prefer_wheel=True)
    with servers(asked.mode, binary) as (_, ports):
        direct = execute(home, asked.mode, ports, asked.grep)
    skips = load_skips(asked.mode)
    with servers(asked.mode, binary) as (server, _), through_proxy(server) as proxy:
        left_out = {*skips, *(name for name, end in direct.items() if end.startswith("failed"))}
        through = execute(home, asked.mode, [urlsplit(proxy.url).port or 0], asked.grep, left_out)
    for name, run in (("directly", direct), ("through the proxy", through)):
        counts = Counter(end.partition(" ")[0] for end in run.values())
        say(f"{name}: " + ", ".join(f"{count} {end}" for end, count in counts.most_common()))
    worse = {
        name: through.get(name, "did not run")
        for name, end in direct.items()
        if end == "passed" and through.get(name) != "passed"
    }
    for name, end in worse.items():
        say(f"{'left out' if name in skips else 'WRONG'}: {name}: {skips.get(name, end)}")
    return 1 if set(worse) - set(skips) else 0


if __name__ == "__main__":
    sys.exit(main())
