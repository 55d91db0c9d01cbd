"""What the documentation says is run: examples, settings with their defaults, names of figures, links.

A page's blocks marked `python` are one program, in their order, against servers of its own; so is each
page's marked `python cluster` (three primaries) and `python replica` (a primary with a replica), in which
the addresses that the page shows are replaced by theirs. `python shown` is compiled and not run. Where a
`print(…)` ends in a comment, that is what it has to print.
"""

import dataclasses
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import keyheat
from keyheat.mitigate import (
    BreakerSettings,
    CopiesSettings,
    CounterSettings,
    LastWriteSettings,
    LeaseSettings,
    LoadingSettings,
    ReplicaReadsSettings,
)
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_BLOCK = re.compile(r"^```(python[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PRINT = re.compile(r"^(\s*)print\((.*)\)  # (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
_DRIVER = """
import logging, warnings
warnings.simplefilter("error")
logging.disable(logging.WARNING)

def _print(*values, wanted):
    found = " ".join(map(str, values))
    if found != wanted:
        raise SystemExit(f"the page says {wanted!r}, this is {found!r}")
"""


def _program(page: Path, mark: str) -> str:
    """The blocks of a page with that mark, as one program whose lines are numbered as the page's."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in _BLOCK.finditer(text):
        if block.group(1).strip() != mark:
            continue
        first = text.count("\n", 0, block.start(2))
        source = _PRINT.sub(
            lambda found: f"{found.group(1)}_print({found.group(2)}, wanted={found.group(3)!r})",
            block.group(2),
        )
        for number, line in enumerate(source.splitlines()):
            lines[first + number] = line
    return "\n".join(lines)


def _with_mark(mark: str) -> list[Any]:
    marks = {page: {found.group(1).strip() for found in _BLOCK.finditer(page.read_text())} for page in PAGES}
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if mark in marks[page]]


def _run(page: Path, mark: str, addresses: dict[str, str]) -> None:
    program = _program(page, mark)
    for shown, real in addresses.items():
        program = program.replace(shown, real)
    names = "{'__name__': '__main__', '_print': _print}"
    driver = f"{_DRIVER}\nexec(compile({program!r}, {page.name!r}, 'exec'), {names})"
    ran = subprocess.run(
        [sys.executable, "-c", driver], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""


def _of_port(shown: int, real: int) -> dict[str, str]:
    return {f"port={shown}": f"port={real}", f"127.0.0.1:{shown}": f"127.0.0.1:{real}"}


@pytest.mark.parametrize("page", _with_mark("python"))
def test_an_example_runs(page: Path, own_server: EmbeddedServer) -> None:
    _run(page, "python", _of_port(6379, own_server.port))


@pytest.mark.parametrize("page", _with_mark("python cluster"))
def test_an_example_for_a_cluster_runs(page: Path, cluster: EmbeddedCluster) -> None:
    _run(page, "python cluster", _of_port(7000, cluster.primaries[0].port))


@pytest.fixture
def pair(own_server: EmbeddedServer, server_binary: str) -> Iterator[EmbeddedServer]:
    """A primary whose replica has caught up."""
    of = {"replicaof": f"127.0.0.1 {own_server.port}"}
    with EmbeddedServer(of, binary=server_binary) as replica, replica.client() as client:
        deadline = time.monotonic() + 10
        while client.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline, "the replica never came up"
            time.sleep(0.01)
        yield own_server


@pytest.mark.parametrize("page", _with_mark("python replica"))
def test_an_example_for_a_primary_with_a_replica_runs(page: Path, pair: EmbeddedServer) -> None:
    _run(page, "python replica", _of_port(6379, pair.port))


@pytest.mark.parametrize("page", _with_mark("python shown"))
def test_an_example_that_is_not_run_compiles(page: Path) -> None:
    compile(_program(page, "python shown"), page.name, "exec")


def test_every_python_block_has_a_known_mark() -> None:
    known = {"python", "python cluster", "python replica", "python shown"}
    for page in PAGES:
        marks = {found.group(1).strip() for found in _BLOCK.finditer(page.read_text(encoding="utf-8"))}
        assert marks <= known, page.name


# ---------------------------------------------------------------- what is listed is what there is


def _default(field: "dataclasses.Field[Any]") -> str:
    """A default as the tables show it."""
    value = field.default
    if value is dataclasses.MISSING:
        return ""
    if type(value) is int:
        return f"{value:,}"
    if callable(value):
        return str(value.__name__)
    return f"{value:g}" if type(value) is float else str(value)


@pytest.mark.parametrize(
    ("page", "settings"),
    [
        ("client-reference.md", keyheat.ClientSettings),
        ("how-to/get-or-load.md", LoadingSettings),
        ("how-to/get-or-load.md", LeaseSettings),
        ("how-to/breaker.md", BreakerSettings),
        ("how-to/copies.md", CopiesSettings),
        ("how-to/replica-reads.md", ReplicaReadsSettings),
        ("how-to/hot-writes.md", CounterSettings),
        ("how-to/hot-writes.md", LastWriteSettings),
    ],
)
def test_every_setting_is_listed_with_its_default(page: str, settings: Any) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", text, re.MULTILINE))
    section = text.partition(f"`{settings.__name__}`")[2] or text
    rows |= dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", section.partition("\n## ")[0], re.MULTILINE))
    for field in dataclasses.fields(settings):
        assert rows.get(field.name, "is not listed").startswith(_default(field)), field.name


def test_every_figure_of_a_client_is_listed(valkey: str) -> None:
    text = (ROOT / "docs" / "client-reference.md").read_text(encoding="utf-8")
    host, port = valkey.split(":")
    client = keyheat.protect(redis.Redis(host=host, port=int(port)))
    deadline = time.monotonic() + 10
    while not client.keyheat.hot_keys():  # type: ignore[attr-defined]
        client.get("hot")
        assert time.monotonic() < deadline, "nothing became hot"
    told = {*client.keyheat.stats(), *client.keyheat.explain("hot")}  # type: ignore[attr-defined]
    client.close()
    assert {name for name in told if f"`{name}`" not in text} == set()


def test_every_public_name_is_in_some_page() -> None:
    whole = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = {*keyheat.__all__, *keyheat.mitigate.__all__} - {"Access", "HotKey", "HotSet"}
    assert {name for name in names if name not in whole} == set()


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_a_link_leads_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        found = (page.parent / target).resolve()
        assert found.exists(), f"{target} does not exist"
        if anchor and found.suffix == ".md":
            assert anchor[1:] in _anchors(found), f"{target}{anchor}"


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as a forge makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
