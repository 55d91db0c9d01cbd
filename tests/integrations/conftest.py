"""Fixtures of the integrations' tests: protected clients, and a Django that knows only caches."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
import redis
from django.conf import settings  # type: ignore[import-untyped]

from keyheat.client import protect
from tests.integrations.hot import RULES

Protected = Callable[..., Any]
Caches = Callable[..., Any]

_numbers = itertools.count(2_000)


def pytest_configure() -> None:
    """Django wants its settings before anything of it is imported."""
    if not settings.configured:
        settings.configure(CACHES={}, USE_TZ=True)


@pytest.fixture
def own_settings() -> dict[str, Any]:
    """Settings of `protect` that no other test has: clients share an engine where theirs are the same."""
    return {"rules": RULES, "hot_keys_max": next(_numbers)}


@pytest.fixture
def protected(own_settings: dict[str, Any]) -> Iterator[Protected]:
    """A protected client: `protected(address)`; those of one test share an engine."""
    with ExitStack() as stack:

        def make(address: str, **options: Any) -> Any:
            host, port = address.rsplit(":", 1)
            client = protect(redis.Redis(host, int(port)), **{**own_settings, **options})
            return stack.enter_context(closing(client))

        yield make


@pytest.fixture
def caches(own_settings: dict[str, Any]) -> Iterator[Caches]:
    """Caches by Django's settings: `caches(default={…})` is `django.core.cache.caches` with these.

    "KEYHEAT" is filled in where a cache has `OPTIONS["KEYHEAT"]`, by settings that no other test has.
    """
    from django.core.cache import caches as found  # type: ignore[import-untyped] # noqa: PLC0415  Django is configured by now
    from django.test import override_settings  # type: ignore[import-untyped] # noqa: PLC0415

    with ExitStack() as stack:

        def make(**by_alias: dict[str, Any]) -> Any:
            for each in by_alias.values():
                options = each.get("OPTIONS", {})
                if isinstance(options.get("KEYHEAT"), dict):
                    options["KEYHEAT"] = {**own_settings, **options["KEYHEAT"]}
            stack.enter_context(override_settings(CACHES=by_alias))
            return found

        yield make
        found.close_all()
