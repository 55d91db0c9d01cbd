"""Clients of every kind the remedies work with."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.mitigate.kinds import KINDS, SHORT, Clients


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SHORT)
def short_kind(request: pytest.FixtureRequest) -> str:
    """Only redis-py: for what takes longer and does not depend on the library."""
    return str(request.param)


@pytest_asyncio.fixture
async def clients(kind: str) -> AsyncIterator[Clients]:
    made = Clients(kind)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def short_clients(short_kind: str) -> AsyncIterator[Clients]:
    made = Clients(short_kind)
    yield made
    await made.close()
