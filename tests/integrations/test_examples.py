"""The examples run, and say what they measured."""

import json
import os
import py_compile
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples.shop.report import table
from examples.shop.sale import Sale, running

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--seconds", "2", "--visitors", "16")
TIMEOUT_S = 90.0


def shop(*words: str) -> "subprocess.CompletedProcess[str]":
    """`python -m examples.shop`, in a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "examples.shop", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "80"},
    )


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What a short sale showed."""
    done = shop(*SHORT, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_sale_sells_what_there_is_and_no_more(measured: dict[str, Any]) -> None:
    for name in ("without_keyheat", "with_keyheat"):
        sale = measured[name]
        assert (sale["oversold"], sale["failed"], sale["turned_away"]) == (0, 0, 0)
        assert sale["sold"] + sale["left"] == sale["stock"]
        assert sale["sold"] > 0
        assert sale["requests"] > 100


def test_keyheat_answers_hot_keys_and_leaves_locks_alone(measured: dict[str, Any]) -> None:
    before, after = measured["without_keyheat"], measured["with_keyheat"]
    assert after["commands_per_request"] < before["commands_per_request"]
    assert after["stats"]["local_hits"] > 0
    plans = {key["key"]: key["plan"] for key in after["hot_keys"]}
    assert plans["price:1"] == ["local_cache", "coalesce"]
    assert plans.get("payment:1", []) == []
    assert not before["hot_keys"]


def test_no_view_is_lost(measured: dict[str, Any]) -> None:
    # The shop has not sent those of the last 100 ms when the books are closed.
    after = measured["with_keyheat"]
    assert after["views"] > 0.5 * 0.7 * after["requests"]


def test_the_table_fits_a_terminal(measured: dict[str, Any]) -> None:
    text = table(Sale(**measured["without_keyheat"]), Sale(**measured["with_keyheat"]), visitors=16)
    assert "oversold                                             0                   0" in text
    assert "price:1" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_pipe_gets_the_table_alone() -> None:
    done = shop("--seconds", "1", "--visitors", "8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("\nA flash sale: 8 visitors for 1 s")
    assert "\r" not in done.stdout
    assert "\033" not in done.stdout


@pytest.mark.parametrize("words", [("--seconds", "0"), ("--visitors", "0"), ("--nonsense",)])
def test_wrong_usage_is_exit_status_2(words: tuple[str, ...]) -> None:
    done = shop(*words)
    assert done.returncode == 2
    assert "usage: python -m examples.shop" in done.stderr


def test_the_shop_shows_what_is_hot_and_its_metrics(valkey: str, eventually: Callable[..., Any]) -> None:
    with running(f"redis://{valkey}", is_protected=True) as port:

        def got(path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                text: str = answer.read().decode()
                return text

        eventually(lambda: json.loads(got("/item/1"))["name"] == "Item 1")
        assert "nothing is hot" in got("/hot")
        assert "keyheat_client_commands_total" in got("/metrics")

        def is_shown() -> bool:
            for _ in range(50):
                got("/item/1")
            return "<td>price:1</td>" in got("/hot")

        eventually(is_shown)


def test_the_shop_without_keyheat_has_no_pages_of_it(valkey: str, eventually: Callable[..., Any]) -> None:
    with running(f"redis://{valkey}", is_protected=False) as port:

        def status(path: str) -> int:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                error.close()
                return error.code

        eventually(lambda: status("/item/1") == 200)
        assert (status("/hot"), status("/metrics")) == (404, 404)


def test_the_celery_example_compiles(tmp_path: Path) -> None:
    # Celery is not among the packages of the tests; whoever has it can run the example.
    py_compile.compile(str(ROOT / "examples" / "celery_app.py"), str(tmp_path / "out.pyc"), doraise=True)


def test_a_sale_that_is_killed_leaves_nothing_behind(
    children: Callable[[int], set[int]], eventually: Callable[..., Any]
) -> None:
    sale = subprocess.Popen(
        [sys.executable, "-m", "examples.shop", "--seconds", "30"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found = eventually(lambda: each if len(each := children(sale.pid)) == 2 else None, timeout_s=30)
    finally:
        sale.kill()
        sale.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))
