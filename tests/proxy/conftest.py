"""Fixtures of the proxy's tests."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from keyheat.server.embedded import EmbeddedServer
from tests.proxy.relay import Relay
from tests.proxy.wire import Wire


@pytest.fixture
def wires() -> Iterator[Callable[..., Wire]]:
    """Connections that are closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda address, timeout_s=5.0: stack.enter_context(contextlib.closing(Wire(address, timeout_s)))


@pytest.fixture
def relay(own_server: EmbeddedServer) -> Iterator[Relay]:
    """A relay before a server of this test's own."""
    made = Relay(own_server.address)
    yield made
    made.close()
