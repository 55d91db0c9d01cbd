"""SIGHUP: what a node that fails or is crowded is judged by changes while the proxy runs."""

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keyheat.server.embedded import EmbeddedServer
from tests.cli.test_proxy import Service
from tests.conftest import StartKeyheat
from tests.proxy.proxies import ask, connect, is_up
from tests.proxy.test_breaker import busy_script
from tests.proxy.test_congestion import all_asking, metrics

Eventually = Callable[..., Any]


class Reloaded(SimpleNamespace):
    """A `keyheat proxy` before `own_server`, its addresses, and its settings, which `change()` replaces."""

    listen: str
    http: str
    service: Service
    base: str

    def change(self, text: str) -> None:
        """Other settings from now on."""
        self.service.file.write_text(self.base + text)
        self.service.process.send_signal(signal.SIGHUP)
        assert "hold" in self.service.until("reload:")


@pytest.fixture
def reloaded(
    start_keyheat: StartKeyheat, own_server: EmbeddedServer, tmp_path: Path, eventually: Eventually
) -> Callable[[str], Reloaded]:
    """Start one: `reloaded("breaker = false")`."""

    def make(text: str) -> Reloaded:
        file = tmp_path / "proxy.toml"
        ports = 'listen = "127.0.0.1:0"\nhttp = "127.0.0.1:0"\n'
        base = f'{ports}upstream = "{own_server.address}"\nshards = 1\nlocal_cache = false\n'
        file.write_text(base + text)
        service = Service(start_keyheat, file)
        made = Reloaded(listen=f"127.0.0.1:{service.port}", http=service.http, service=service, base=base)
        eventually(lambda: is_up(made))
        return made

    return make


def test_how_long_a_node_may_be_silent_changes(
    reloaded: Callable[[str], Reloaded], own_server: EmbeddedServer, eventually: Eventually
) -> None:
    proxy = reloaded("breaker_silence_ms = 60000\n")
    with connect(proxy) as waits, connect(proxy) as s:
        own_server.pause()
        waits.sendall(b"GET k\r\n")
        s.settimeout(1)
        with pytest.raises(TimeoutError):
            ask(s, b"GET k\r\n")
        proxy.change("breaker_silence_ms = 300\n")
        eventually(lambda: metrics(proxy)['keyheat_node_breaker_shards{state="closed"}'] == 0)
        with connect(proxy) as late:
            late.settimeout(3)
            assert b"has answered nothing for 300 ms" in ask(late, b"GET k\r\n")
        own_server.resume()
        assert waits.recv(100) == b"$-1\r\n"
        assert s.recv(100) == b"$-1\r\n"
        eventually(lambda: ask(s, b"GET k\r\n") == b"$-1\r\n")


def test_how_much_is_sent_to_a_node_changes_and_no_limit_holds_without_congestion_control(
    reloaded: Callable[[str], Reloaded], own_server: EmbeddedServer, eventually: Eventually
) -> None:
    proxy = reloaded("")
    eventually(lambda: metrics(proxy)["keyheat_node_limit{}"] == 4096)
    tight = "congestion_limit_min = 2\ncongestion_limit_max = 4\ncongestion_queue_max = 4\n"
    proxy.change(tight + "congestion_queue_timeout_ms = 20000\nbreaker_silence_ms = 20000\n")
    eventually(lambda: metrics(proxy)["keyheat_node_limit{}"] == 4)
    with contextlib.ExitStack() as stack:
        own_server.pause()
        waiting = all_asking(stack, proxy, 8, b"GET k\r\n")
        eventually(lambda: metrics(proxy)["keyheat_node_queued{}"] == 4)
        late = stack.enter_context(connect(proxy))
        assert ask(late, b"GET k\r\n").startswith(b"-OVERLOAD keyheat: ")
        # Those in line are sent, and nobody is turned back any more.
        proxy.change("congestion = false\nbreaker_silence_ms = 20000\n")
        eventually(lambda: metrics(proxy)["keyheat_node_in_flight{}"] == 8)
        waiting += all_asking(stack, proxy, 8, b"GET k\r\n")
        eventually(lambda: metrics(proxy)["keyheat_node_in_flight{}"] == 16)
        assert metrics(proxy)["keyheat_node_limit{}"] == 0
        own_server.resume()
        assert {each.recv(100) for each in waiting} == {b"$-1\r\n"}


def test_a_breaker_that_is_switched_off_while_it_is_open_turns_nobody_back_and_is_closed(
    reloaded: Callable[[str], Reloaded], own_server: EmbeddedServer, eventually: Eventually
) -> None:
    tight = "breaker_calls_min = 5\nbreaker_open_ms = 30000\nbreaker_open_max_ms = 30000\n"
    proxy = reloaded(tight)
    with connect(proxy) as s, busy_script(own_server):
        eventually(lambda: ask(s, b"GET k\r\n").startswith(b"-ERR keyheat: upstream "))
        eventually(lambda: metrics(proxy)['keyheat_node_breaker_shards{state="open"}'] == 1)
        proxy.change(tight + "breaker = false\n")
        eventually(lambda: ask(s, b"GET k\r\n").startswith(b"-BUSY "))
        assert {ask(s, b"GET k\r\n")[:6] for _ in range(50)} == {b"-BUSY "}
        with connect(proxy) as blocks:
            assert ask(blocks, b"BLPOP l 0.01\r\n").startswith(b"-BUSY ")
        eventually(lambda: metrics(proxy)['keyheat_node_breaker_shards{state="closed"}'] == 1)
    eventually(lambda: is_up(proxy))
