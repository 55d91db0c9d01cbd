"""`keyheat proxy` as a service manager runs it."""

import json
import re
import shutil
import signal
import socket
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.client.tls_servers import Certificates
from tests.conftest import RunKeyheat, StartKeyheat

from keyheat.server.embedded import EmbeddedServer

pytestmark = pytest.mark.native

PORTS = 'listen = "127.0.0.1:0"\nhttp = "127.0.0.1:0"\n'


class Service:
    """A running `keyheat proxy` with a file."""

    def __init__(self, start: StartKeyheat, file: Path, *words: str) -> None:
        self.file = file
        self.process = start("proxy", "--config", str(file), *words)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.findall(r"(?:\d+\.){3}\d+:(\d+)", line)
        assert found, line + self.process.communicate(timeout=10)[1]
        self.port, self.http = int(found[0]), f"127.0.0.1:{found[-1]}"
        self.tls_port = int(found[1])

    def client(self, **options: Any) -> "redis.Redis":
        return redis.Redis("127.0.0.1", self.port, **options)

    def until(self, word: str) -> str:
        """The next line of the log with a word in it."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if word in line:
                return line
        raise AssertionError(f"it has ended without a word of {word!r}")

    def end(self) -> tuple[int, str]:
        """Exit status, and what it has said."""
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


MakeService = Callable[..., Service]


@pytest.fixture
def service(start_keyheat: StartKeyheat, tmp_path: Path, valkey: str) -> MakeService:
    """Start one: `service("clients_max = 3", "--shards", "1")`."""

    def make(text: str = "", *words: str) -> Service:
        file = tmp_path / "proxy.toml"
        file.write_text(
            f'listen = "127.0.0.1:0"\nhttp = "127.0.0.1:0"\nupstream = "{valkey}"\nshards = 1\n{text}'
        )
        return Service(start_keyheat, file, *words)

    return make


def test_it_serves_and_ends_when_told(service: MakeService) -> None:
    running = service()
    with running.client() as client:
        assert client.set("k", "v")
    status, err = running.end()
    assert status == 0, err
    assert "draining, 10 s at most" in err


def test_the_bound_of_the_drain_is_a_setting(service: MakeService) -> None:
    running = service("drain_timeout_s = 0.2")
    with running.client(socket_timeout=20) as client, client.pipeline() as pipe:
        client.ping()
        connection = client.connection_pool.get_connection()
        connection.send_command("BLPOP", "nothing", 10)
        pipe.ping()
        status, err = running.end()
        assert status == 1
        assert "the drain took too long" in err
        connection.disconnect()


def test_an_account_from_a_file_is_the_proxys(
    start_keyheat: StartKeyheat, tmp_path: Path, own_server: EmbeddedServer
) -> None:
    with own_server.client() as admin:
        admin.config_set("requirepass", "s3cret")
    (tmp_path / "password").write_text("s3cret\n")
    file = tmp_path / "proxy.toml"
    file.write_text(f'{PORTS}upstream = "{own_server.address}"\nupstream_password_file = "password"\n')
    running = Service(start_keyheat, file)
    with running.client(password="s3cret") as client:
        assert client.set("k", "v")
    status, err = running.end()
    assert status == 0
    assert "s3cret" not in err


def test_what_cannot_be_used_is_refused_before_anything_starts(keyheat: RunKeyheat) -> None:
    done = keyheat("proxy", "--log", "loud")
    assert (done.returncode, done.stdout) == (2, "")
    assert "log: accepted: 'error'" in done.stderr


# ---------------------------------------------------------------- reload


def test_a_reload_changes_what_may_change_and_cuts_nobody(
    service: MakeService, eventually: Callable[..., Any]
) -> None:
    running = service("clients_max = 2")
    with running.client(single_connection_client=True, retry=None) as client:
        before = client.client_id()
        text = running.file.read_text()
        running.file.write_text(text.replace("clients_max = 2", 'clients_max = 100\nlog = "debug"'))
        running.process.send_signal(signal.SIGHUP)

        def admits_more() -> bool:
            clients = [running.client(retry=None) for _ in range(4)]
            try:
                return all(each.ping() for each in clients)
            except redis.RedisError:
                return False
            finally:
                for each in clients:
                    each.close()

        eventually(admits_more)
        assert client.client_id() == before
    status, err = running.end()
    assert status == 0
    assert 'hold; changed: clients_max 2 -> 100; log "info" -> "debug"\n' in err


def test_a_reload_names_what_cannot_change(service: MakeService) -> None:
    running = service("cache_bytes = 1000000")
    text = running.file.read_text().replace("shards = 1", "shards = 2").replace("1000000", "2000000")
    running.file.write_text(text)
    running.process.send_signal(signal.SIGHUP)
    said = running.until("reload:")
    assert "hold; these keep their values until a start anew: shards, cache_bytes" in said
    with running.client() as client:
        assert client.ping()
    assert running.end()[0] == 0


def test_a_reload_names_what_has_changed_and_tells_no_secret(service: MakeService, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret-token")
    (tmp_path / "password").write_text("s3cret-password")
    running = service('read_from = "primary"\nclients_max = 100')
    base = running.file.read_text()

    def change(text: str) -> str:
        running.file.write_text(text)
        running.process.send_signal(signal.SIGHUP)
        said = running.until("reload:")
        assert "hold" in said, said
        return said.split("hold", 1)[1].rstrip("\n")

    levels = 'levels = [{ metric = "ops", enter_per_s = 20 }]'
    rule = f'\n[[rules]]\nname = "mine"\nmatch = {{ any = true }}\n{levels}\nplan = []\n'
    text = (
        base.replace('"primary"', '"prefer-replica"')
        + "\nnx_is_lock = false\ndrain_timeout_s = 3\nshards = 2"
    )
    said = change(text.replace("shards = 1\n", "") + rule)
    assert '; changed: read_from "primary" -> "prefer-replica"; nx_is_lock true -> false; ' in said
    assert "drain_timeout_s 10.0 -> 3.0; rules; these keep their values until a start anew: shards" in said
    assert "shards 1" not in said
    # What did not change then does not change back.
    said = change(
        base + f'\nfeed_token_file = "{tmp_path}/token"\nupstream_password_file = "{tmp_path}/password"'
    )
    assert "shards" not in said
    assert "; these keep their values until a start anew: " in said
    assert "s3cret" not in said
    assert 'read_from "prefer-replica" -> "primary"' in said
    assert change(base) == ""
    assert running.end()[0] == 0


@pytest.mark.parametrize("text", ["clients_max = 0", "nonsense = 1", "= no toml", "max_staleness_ms = 3"])
def test_a_bad_file_changes_nothing_and_says_why(service: MakeService, text: str) -> None:
    running = service()
    running.file.write_text(running.file.read_text() + text)
    running.process.send_signal(signal.SIGHUP)
    assert "reload: nothing has changed: the config file" in running.until("reload:")
    with running.client() as client:
        assert client.set("k", "v")
    assert running.end()[0] == 0


def test_a_reload_brings_new_rules_and_the_switch_of_the_cache(
    service: MakeService, eventually: Callable[..., Any]
) -> None:
    rule = '[[rules]]\nname="{0}"\nmatch={{any=true}}\nlevels=[{{metric="reads",enter_per_s={1}}}]\n'
    running = service("# more\n" + rule.format("never", 10**9))
    base = running.file.read_text().partition("# more")[0]

    def hot() -> str:
        with running.client() as client:
            for _ in range(50):
                client.get("k")
        with urllib.request.urlopen(f"http://{running.http}/api/hot", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    assert '"keys":[]' in hot()
    running.file.write_text(base + "local_cache = false\n" + rule.format("soon", 5))
    running.process.send_signal(signal.SIGHUP)
    eventually(lambda: '"rule":"soon"' in hot())
    assert '"local_cache":{"on":false,"reason":"switched off"}' in hot()
    running.file.write_text(base + rule.format("soon", 5))
    running.process.send_signal(signal.SIGHUP)
    eventually(lambda: '"local_cache":{"on":true' in hot())
    assert '"rule":"soon"' in hot()
    assert running.end()[0] == 0


def test_a_reload_brings_a_new_certificate(
    service: MakeService, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program on PATH: it makes the certificates of this test")
    certificates = Certificates(tmp_path / "certificates")
    pair = certificates.server
    running = service(
        f'tls_listen = "127.0.0.1:0"\ntls_cert_file = "{pair.certificate}"\ntls_key_file = "{pair.key}"'
    )
    ca: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(certificates.ca.certificate), "retry": None}

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", running.tls_port))

    old = shown()
    with redis.Redis(port=running.tls_port, single_connection_client=True, **ca) as client:
        before = client.client_id()
        certificates.issued("server", "subjectAltName=DNS:localhost,IP:127.0.0.1")  # in place of the old
        running.process.send_signal(signal.SIGHUP)
        eventually(lambda: shown() != old)
        assert client.client_id() == before
        pair.key.write_text("nothing")
        running.process.send_signal(signal.SIGHUP)
        assert str(pair.key) in running.until("nothing has changed")
        assert client.ping()
    assert running.end()[0] == 0


def test_without_a_file_a_hangup_is_the_end(start_keyheat: StartKeyheat, valkey: str) -> None:
    words = ("--listen", "127.0.0.1:0", "--http", "none", "--upstream", valkey)
    process = start_keyheat("proxy", *words)
    assert process.stdout is not None
    assert "listens on" in process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0


# ---------------------------------------------------------------- log


def test_every_line_of_a_json_log_is_an_object(
    start_keyheat: StartKeyheat, tmp_path: Path, own_server: EmbeddedServer
) -> None:
    valkey = own_server.address
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "u", "on", ">s3cret", "~*", "+@all")
    file = tmp_path / "proxy.toml"
    limits = 'clients_max = 1\nlog_format = "json"\n'
    file.write_text(f'{PORTS}upstream = "redis://u:s3cret@{valkey}"\n{limits}')
    process = start_keyheat("proxy", "--config", str(file))
    assert process.stderr is not None
    lines = [json.loads(process.stderr.readline())]
    while "listens on" not in (said := lines[-1]["message"]):
        lines.append(json.loads(process.stderr.readline()))
    port = int(re.findall(r"127\.0\.0\.1:(\d+)", said)[0])
    account: dict[str, Any] = {"username": "u", "password": "s3cret"}
    with redis.Redis(port=port, single_connection_client=True, **account) as client:
        assert client.ping()
        for _ in range(300):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as turned_away:
                assert turned_away.recv(100).startswith(b"-ERR max number of clients")
    file.write_text("nonsense = 1")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert out == ""
    assert "s3cret" not in err
    lines += [json.loads(line) for line in err.splitlines()]
    for line in lines:
        assert line["level"] in {"error", "warn", "info"}
        assert line["message"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["time"])
    turned = [line for line in lines if line.get("limit") == "clients_max"]
    assert 0 < len(turned) < 5
    assert turned[0]["client"].startswith("127.0.0.1:")
    assert any("reload: nothing has changed" in line["message"] for line in lines)


def test_what_others_say_begins_no_line_of_its_own(service: MakeService) -> None:
    running = service("request_max_bytes = 2000")
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as stream:
        stream.sendall(b"*2\r\n$3\r\nGET\r\n\x1b[2J\nERROR forged\r\n")
        assert stream.recv(1000).startswith(b"-ERR Protocol error")
    status, err = running.end()
    assert status == 0
    assert "limit=protocol" in err
    assert "\x1b" not in err
    assert all(line.startswith("20") for line in err.splitlines()), err
