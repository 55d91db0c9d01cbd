"""OPTIONS["KEYHEAT"] of a Django cache, and what keeps engines alive between requests.

Django throws its cache objects away: each thread has its own, and under ASGI each request. An engine ends
with the last client that uses it, and what it has learned with it. So the engines that were used through
Django are held here until the process ends, or until the setting CACHES is changed (in a test).
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]
from django.core.signals import setting_changed  # type: ignore[import-untyped]

from keyheat.client import ClientSettings, protect
from keyheat.errors import ConfigError

_WHERE = 'CACHES: OPTIONS["KEYHEAT"]'

_engines: set[Any] = set()


def checked(options: object) -> dict[str, Any]:
    """The keyword arguments of `protect`, as a Django setting gives them.

    Raises:
        ImproperlyConfigured: They are not accepted; the message names the option and what is accepted.
    """
    known = {field.name for field in fields(ClientSettings)}
    accepted = sorted({*known, "settings"})
    if not isinstance(options, Mapping):
        raise ImproperlyConfigured(f"{_WHERE}: accepted: a dict with any of {', '.join(accepted)}")
    if unknown := sorted(str(name) for name in options if name not in accepted):
        raise ImproperlyConfigured(f"{_WHERE}: no option {unknown[0]!r}; accepted: {', '.join(accepted)}")
    settings = options.get("settings")
    if settings is None:
        settings = ClientSettings()
    if not isinstance(settings, ClientSettings):
        raise ImproperlyConfigured(f"{_WHERE}: settings: accepted: a keyheat.ClientSettings")
    try:
        replace(settings, **{name: options[name] for name in options if name in known}).to_json()
    except ConfigError as error:
        raise ImproperlyConfigured(f"{_WHERE}: {error}") from error
    return dict(options)


def protected(client: Any, options: Mapping[str, Any], *, is_replica: bool = False) -> Any:
    """A protected client whose engine stays.

    Args:
        client: The client.
        options: What `checked` returned.
        is_replica: Whether it reads from a replica. What a replica says may be older than any bound that
            could be proved, and this process writes elsewhere: all its reads go to the server.

    Raises:
        ImproperlyConfigured: The engine refused a setting.
    """
    try:
        made: Any = protect(client, **options)
    except ConfigError as error:
        raise ImproperlyConfigured(f"{_WHERE}: {error}") from error
    _engines.add(made.keyheat.binding)
    if is_replica:
        made.keyheat.guard.switch_off()
    return made


def _forget(*, setting: str, **_: object) -> None:
    if setting == "CACHES":
        _engines.clear()


setting_changed.connect(_forget, dispatch_uid="keyheat.integrations")
