"""What is closed with a client, and that a closed one may be used again."""

from collections.abc import Callable
from typing import Any

from keyheat.server.embedded import EmbeddedServer
from tests.client.sides import Side, until_local


def tracking(server: EmbeddedServer) -> int:
    with server.client() as admin:
        return sum(each["name"] == "keyheat-tracking" for each in admin.client_list())


def test_the_last_client_to_be_closed_closes_the_tracking_connection(
    side: Side, own_server: EmbeddedServer, eventually: Callable[..., Any]
) -> None:
    one, other = (side.protected(own_server.address) for _ in range(2))
    until_local(one, lambda: one.get("k"))
    assert tracking(own_server) == 1
    one.aclose() if side.is_aio else one.close()
    until_local(other, lambda: other.get("k"))
    assert tracking(own_server) == 1
    other.aclose() if side.is_aio else other.close()
    eventually(lambda: tracking(own_server) == 0)


def test_a_closed_client_may_be_used_again(side: Side, own_server: EmbeddedServer) -> None:
    client = side.protected(own_server.address)
    until_local(client, lambda: client.get("k"))
    client.aclose() if side.is_aio else client.close()
    until_local(client, lambda: client.get("k"))
    client.set("k", 1)
    assert client.get("k") == b"1"


def test_a_method_replaced_on_the_client_itself_is_called_once(
    sync: Side, own_server: EmbeddedServer
) -> None:
    client = sync.protected(own_server.address)
    own, calls = client.execute_command, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return own(*args, **options)

    client.execute_command = counted
    until_local(client, lambda: client.get("k"))
    before = calls
    client.get("k")
    assert calls == before + 1
