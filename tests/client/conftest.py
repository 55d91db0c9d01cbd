"""Fixtures of the protected client's tests."""

from collections.abc import Iterator

import pytest

from keyheat.server.embedded import EmbeddedServer
from tests.client.relays import FaultyRelay
from tests.client.sides import KINDS, Side, side_of


@pytest.fixture(params=KINDS)
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    """Both kinds of client, one after the other."""
    with side_of(request.param) as made:
        yield made


@pytest.fixture
def sync() -> Iterator[Side]:
    """Blocking clients only: where the kind cannot matter."""
    with side_of("sync") as made:
        yield made


@pytest.fixture
def relay(own_server: EmbeddedServer) -> Iterator[FaultyRelay]:
    """A relay before a server of this test's own."""
    made = FaultyRelay(own_server.address)
    yield made
    made.close()
