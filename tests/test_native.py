"""The native module and its stub say the same."""

import ast
import importlib.metadata
import inspect
import json
import time
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

import keyheat
from keyheat import clock

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def native() -> Any:
    from keyheat import _keyheat  # noqa: PLC0415 - the marker says it is needed

    return _keyheat


def stubbed() -> dict[str, list[str]]:
    """Names of the stub, and for classes their members."""
    tree = ast.parse(Path(keyheat.__file__).with_name("_keyheat.pyi").read_text())
    named = {
        node.name: [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
    values: dict[str, list[str]] = {
        ast.unparse(node.target): [] for node in tree.body if isinstance(node, ast.AnnAssign)
    }
    return named | values


def test_the_stub_names_all_there_is(native: Any) -> None:
    public = {name for name in dir(native) if not name.startswith("_")}
    assert set(stubbed()) == public
    members = {name for name in vars(native.Proxy) if not name.startswith("_")}
    assert {name for name in stubbed()["Proxy"] if not name.startswith("_")} == members


def test_parameters_have_the_names_of_the_stub(native: Any) -> None:
    assert list(inspect.signature(native.Proxy.drain).parameters) == ["self", "timeout_s"]
    assert list(inspect.signature(native.Proxy.set_local_cache).parameters) == ["self", "on"]


def test_there_is_one_version(native: Any) -> None:
    assert native.version() == importlib.metadata.version("keyheat")


def test_both_sides_read_one_clock(native: Any) -> None:
    before, between, after = clock.now_ns(), native.now_ns(), clock.now_ns()
    assert before <= between <= after
    assert abs(between - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) < 10**9


@pytest.mark.parametrize("key", [b"", b"item:1", b"{user}:1", b"a{}b", b"{a", b"\xff\x00", b"x{y}z{w}"])
def test_slots_are_those_of_the_cluster(native: Any, key: bytes) -> None:
    assert native.slot(key) == key_slot(key)


def test_an_unknown_setting_is_named(native: Any) -> None:
    with pytest.raises(ValueError, match="colour"):
        native.Proxy(json.dumps({"colour": 1}))
