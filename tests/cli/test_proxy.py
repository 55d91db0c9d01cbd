"""`keyheat proxy` as a service manager runs it."""

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.conftest import RunKeyheat, StartKeyheat

from keyheat.server.embedded import EmbeddedServer

pytestmark = pytest.mark.native


class Service:
    """A running `keyheat proxy` with a file."""

    def __init__(self, start: StartKeyheat, file: Path, *words: str) -> None:
        self.file = file
        self.process = start("proxy", "--config", str(file), *words)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"redis://127\.0\.0\.1:(\d+)", line)
        assert found, line + self.process.communicate(timeout=10)[1]
        self.port = int(found[1])

    def client(self, **options: Any) -> "redis.Redis":
        return redis.Redis("127.0.0.1", self.port, **options)

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
        file.write_text(f'listen = "127.0.0.1:0"\nhttp = "none"\nupstream = "{valkey}"\nshards = 1\n{text}')
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
    file.write_text(
        f'listen = "127.0.0.1:0"\nhttp = "none"\nupstream = "{own_server.address}"\n'
        'upstream_password_file = "password"\n'
    )
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
