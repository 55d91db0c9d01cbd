"""A proxy that serves until it is told to end, for the commands that start one."""

import json
import logging
import queue
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING, Final

from keyheat.cli.notify import notify
from keyheat.errors import ConfigError
from keyheat.proxy.native import start_proxy
from keyheat.proxy.settings import ProxySettings

if TYPE_CHECKING:
    from keyheat._keyheat import Proxy

_CAUGHT: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """The signals that came, in order; caught from the moment this is made."""

    def __init__(self) -> None:
        # The one queue whose `put` may interrupt another.
        self._came: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in _CAUGHT:
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self._came.put(number)

    def next(self) -> int:
        """The next one; waits for it."""
        while True:
            try:
                # Never for ever in one go: not every platform wakes a wait for a signal.
                return self._came.get(timeout=1.0)
            except queue.Empty:
                continue


def serve(
    settings: ProxySettings, signals: Signals, reload: Callable[[], ProxySettings] | None = None
) -> int:
    """Serve until told to end, then drain; the exit status.

    Args:
        settings: The settings.
        signals: What tells.
        reload: Reads the settings anew, for SIGHUP; without it, SIGHUP ends the proxy.
    """
    with ExitStack() as stack:
        proxy = start_proxy(settings)
        stack.callback(proxy.stop)
        logging.basicConfig(handlers=[_ToProxy(proxy)], force=True)
        _say_where(proxy, settings)
        notify("READY=1")
        while signals.next() == signal.SIGHUP and reload is not None:
            settings = _reloaded(proxy, settings, reload)
        notify("STOPPING=1")
        proxy.log("info", f"draining, {settings.drain_timeout_s:g} s at most")
        is_drained = proxy.drain(settings.drain_timeout_s)
        if not is_drained:
            proxy.log("error", "stopped with requests unanswered: the drain took too long (drain_timeout_s)")
    return 0 if is_drained else 1


class _ToProxy(logging.Handler):
    """Python's own log lines, in the format of the proxy's."""

    def __init__(self, proxy: "Proxy") -> None:
        super().__init__()
        self._proxy = proxy

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warn"
        level = level if record.levelno >= logging.WARNING else "info"
        self._proxy.log(level, f"{record.name}: {record.getMessage()}")


def _say_where(proxy: "Proxy", settings: ProxySettings) -> None:
    proxy.log("info", f"the upstream is {settings.upstream}")
    places = (("redis", proxy.listen), ("rediss", proxy.tls_listen), ("unix", settings.unix_socket))
    listens = " and ".join(f"{scheme}://{place}" for scheme, place in places if place)
    http = f"http://{proxy.http}" if proxy.http else "off"
    if settings.log_format == "json":
        # Both streams end up in one place, where every line is to be an object.
        proxy.log("info", f"keyheat listens on {listens}, http on {http}")
        return
    sys.stdout.write(f"keyheat listens on {listens}, http on {http}\n")
    sys.stdout.flush()


def _reloaded(proxy: "Proxy", settings: ProxySettings, reload: Callable[[], ProxySettings]) -> ProxySettings:
    """The settings that hold after a reload: the old ones if the new cannot be used."""
    try:
        new = reload()
        kept = proxy.reload(json.dumps(new.to_json()))
    except (ConfigError, ValueError) as error:
        proxy.log("error", f"reload: nothing has changed: {error}")
        return settings
    changed = "; ".join(line for name, line in settings.changes(new).items() if name not in kept)
    turn = f"; changed: {changed}" if changed else ""
    stay = f"; these keep their values until a start anew: {', '.join(kept)}" if kept else ""
    proxy.log("warn" if kept else "info", f"reload: the settings were read and hold{turn}{stay}")
    # What is compared with the next time is what holds.
    held = {name: getattr(settings, name) for name in kept if name in type(settings).model_fields}
    return new.model_copy(update=held)
