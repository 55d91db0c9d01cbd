"""The log of what becomes hot and cold."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis

from keyheat.client import protect
from keyheat.errors import ConfigError
from keyheat.integrations.hot_key_log import HotKeyLog
from keyheat.integrations.redaction import hashed
from keyheat.server.embedded import EmbeddedServer
from tests.integrations.conftest import Protected
from tests.integrations.hot import RULES, until_local

Eventually = Callable[..., Any]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was told so far."""
    caplog.set_level(logging.INFO, logger="keyheat.hot_keys")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "keyheat.hot_keys"]


def test_a_key_is_told_once_when_hot_and_once_when_cold(
    protected: Protected,
    valkey: str,
    told: Callable[[], list[str]],
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    client = protected(valkey, window=0.1)
    log = HotKeyLog(client)
    log.look()
    assert told() == []
    until_local(client.keyheat, lambda: client.get("item:7"))
    for _ in range(3):
        log.look()
    (hot,) = told()
    assert hot.startswith("key item:7 is hot: ")
    assert "rule all" in hot
    assert hot.endswith("local_cache and coalesce")
    fields = caplog.records[0].__dict__["keyheat"]
    assert (fields["change"], fields["key"], fields["rule"]) == ("hot", "item:7", "all")
    eventually(lambda: not client.keyheat.hot_keys())
    for _ in range(3):
        log.look()
    (_, cold) = told()
    assert cold.startswith("key item:7 is cold again: ")
    assert "reads were answered from memory" in cold


def test_what_keeps_keys_from_being_cached_is_told_once(
    own_settings: dict[str, Any],
    own_server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    caplog.set_level(logging.INFO, logger="keyheat.tracking")
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">hunter2", "~*", "+@all", "-client|tracking")
    with redis.Redis(port=own_server.port, username="app", password="hunter2") as bare:
        client: Any = protect(bare, **own_settings)
        log = HotKeyLog(client)
        eventually(lambda: client.get("item:7") or client.keyheat.stats()["not_caching"])
        for _ in range(3):
            log.look()
    (warning,) = [record for record in caplog.records if record.name == "keyheat.tracking"]
    assert warning.levelno == logging.WARNING
    assert warning.getMessage().startswith("hot keys are not answered from memory: ")
    assert "hunter2" not in caplog.text


def test_a_lost_tracking_connection_is_told(
    protected: Protected,
    own_server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    caplog.set_level(logging.INFO, logger="keyheat.tracking")
    client = protected(own_server.address)
    log = HotKeyLog(client)
    until_local(client.keyheat, lambda: client.get("item:7"))
    log.look()
    assert not [record for record in caplog.records if record.name == "keyheat.tracking"]
    with own_server.client() as admin:
        admin.client_kill_filter(_type="normal")
    eventually(lambda: client.get("item:7") or client.keyheat.stats()["tracking_lost"] > 0)
    until_local(client.keyheat, lambda: client.get("item:7"))
    log.look()
    assert "lost 1 times" in caplog.text or "not answered from memory" in caplog.text


def test_it_looks_by_itself_until_stopped(
    protected: Protected, valkey: str, told: Callable[[], list[str]], eventually: Eventually
) -> None:
    client = protected(valkey)
    with HotKeyLog(client, interval_s=0.01):
        until_local(client.keyheat, lambda: client.get("a"))
        eventually(lambda: len(told()) == 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "keyheat-hot-log"]
    until_local(client.keyheat, lambda: client.get("b"))
    assert len(told()) == 1


def test_keys_are_redacted_if_asked_for(
    protected: Protected, valkey: str, told: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    client = protected(valkey)
    log = HotKeyLog(client, redact=hashed)
    until_local(client.keyheat, lambda: client.get("user:x-y"))
    log.look()
    (hot,) = told()
    assert hashed(b"user:x-y") in hot
    assert "x-y" not in hot.replace(hashed(b"user:x-y"), "")
    assert caplog.records[0].__dict__["keyheat"]["key"] == hashed(b"user:x-y")


def test_it_tells_a_logger_of_ones_own(protected: Protected, valkey: str) -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger = logging.getLogger("tests.hot")
    logger.addHandler(Keep())
    logger.setLevel(logging.INFO)
    client = protected(valkey)
    until_local(client.keyheat, lambda: client.get("a"))
    HotKeyLog(client, logger=logger).look()
    assert [record.levelname for record in records] == ["INFO"]


def test_a_logger_that_fails_ends_nothing(protected: Protected, valkey: str, eventually: Eventually) -> None:
    calls: list[str] = []

    class Failing(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            calls.append(record.getMessage())
            raise RuntimeError

    logger = logging.getLogger("tests.failing")
    logger.setLevel(logging.INFO)
    logger.addFilter(Failing())
    client = protected(valkey)
    with HotKeyLog(client, interval_s=0.01, logger=logger):
        for number in range(2):
            until_local(client.keyheat, partial(client.get, f"key:{number}"))
            eventually(lambda number=number: len(calls) > number)


@pytest.mark.parametrize("interval_s", [0, -1, float("nan")])
def test_a_wrong_interval_is_refused(protected: Protected, valkey: str, interval_s: float) -> None:
    with pytest.raises(ConfigError, match="interval_s: accepted: seconds above 0"):
        HotKeyLog(protected(valkey), interval_s)


FORKS = """
import logging, os, sys, time, redis
from keyheat import protect
from keyheat.integrations.hot_key_log import HotKeyLog
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%%(process)d %%(message)s")
host, port = sys.argv[1].split(":")
client = protect(redis.Redis(host, int(port)), rules=%r)
HotKeyLog.kept = HotKeyLog(client, interval_s=0.01).start()
def read(key):
    until = time.monotonic() + 10
    while not client.keyheat.explain(key)["is_hot"]:
        client.get(key)
        assert time.monotonic() < until
    time.sleep(0.1)
read("before")
child = os.fork()
if not child:
    read("within")
    sys.exit(0)
os.waitpid(child, 0)
print(os.getpid(), child, "end", flush=True)
"""


def test_a_forked_child_tells_of_its_own_and_both_end_cleanly(valkey: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS % RULES, valkey],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    parent, child, _ = done.stdout.splitlines()[-1].split()
    lines = [line.split()[:4] for line in done.stdout.splitlines() if " is hot: " in line]
    assert lines == [[parent, "key", "before", "is"], [child, "key", "within", "is"]]
