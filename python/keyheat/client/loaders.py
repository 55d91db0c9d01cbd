"""`get_or_load` and `cached` of a protected client: the loader behind them, made when first asked for."""

import os
import threading
from typing import Any

from keyheat.client._engine import Binding
from keyheat.mitigate.breaker import Breaker
from keyheat.mitigate.lease import Lease, LeaseSettings
from keyheat.mitigate.loading import Loader

_lock = threading.Lock()


def _start_anew() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_start_anew)


def loader_of(client: Any, binding: Binding) -> Loader:
    """The loader of a protected client; one for its lifetime.

    A blocking client's is made for its twin, so that the two do not keep each other alive.
    """
    found: Loader | None = client._keyheat_loader
    if found is not None:
        return found
    with _lock:
        if client._keyheat_loader is None:
            client._keyheat_loader = _made(getattr(client, "_keyheat_twin", client), binding)
        made: Loader = client._keyheat_loader
        return made


def _made(client: Any, binding: Binding) -> Loader:
    settings = binding.settings
    lease = None
    if settings.lease is not False:
        lease = Lease(client, settings.lease if isinstance(settings.lease, LeaseSettings) else None)
    breaker = Breaker("cache", settings.breaker) if settings.breaker is not None else None
    return Loader(client, settings.loading, lease=lease, breaker=breaker)
