"""A proxy that serves until it is told to end, for the commands that start one."""

import logging
import signal
import sys
import threading
from contextlib import ExitStack
from types import FrameType

from keyheat.proxy.native import start_proxy
from keyheat.proxy.settings import ProxySettings


def catch_signals(stop: threading.Event) -> None:
    """Have SIGTERM, SIGINT and SIGHUP set it, from here on."""

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask_to_stop)


def serve(settings: ProxySettings, stop: threading.Event) -> int:
    """Serve until `stop` is set, then drain; the exit status."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    with ExitStack() as stack:
        proxy = start_proxy(settings)
        stack.callback(proxy.stop)
        sys.stderr.write(f"upstream        {settings.upstream}\n")
        http = f"http://{proxy.http}" if proxy.http else "off"
        places = (
            ("redis", proxy.listen),
            ("rediss", proxy.tls_listen),
            ("unix", settings.unix_socket),
        )
        listens = " and ".join(f"{scheme}://{place}" for scheme, place in places if place)
        sys.stdout.write(f"keyheat listens on {listens}, http on {http}\n")
        sys.stdout.flush()
        while not stop.wait(1.0):
            pass
        sys.stderr.write(f"draining, {settings.drain_timeout_s:g} s at most\n")
        is_drained = proxy.drain(settings.drain_timeout_s)
    if not is_drained:
        sys.stderr.write("keyheat: stopped with requests unanswered: the drain took too long\n")
    return 0 if is_drained else 1
