"""`keyheat up`."""

import logging
import signal
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from keyheat.detect.rules import explain, load_rules
from keyheat.errors import ConfigError
from keyheat.proxy.native import start_proxy
from keyheat.proxy.settings import ProxySettings
from keyheat.proxy.url import parse_address, parse_url


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The options of the command line; `proxy` goes to the proxy as it is."""

    upstream: str | None
    listen: str
    http: str | None
    rules: Path | None
    drain_timeout_s: float
    proxy: dict[str, Any]


def run(options: UpOptions) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain."""
    settings = _settings(options)
    stop = threading.Event()

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask_to_stop)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    with ExitStack() as stack:
        if options.upstream is None:
            from keyheat.server.embedded import EmbeddedServer

            server = stack.enter_context(EmbeddedServer())
            settings = settings.model_copy(update={"upstream": parse_url(server.url)})
            sys.stderr.write(f"embedded server {server.address} (its data ends with this command)\n")
        proxy = start_proxy(settings)
        stack.callback(proxy.stop)
        sys.stderr.write(f"upstream        {settings.upstream}\n")
        http = f"http://{proxy.http}" if proxy.http else "off"
        socket = f" and unix://{settings.unix_socket}" if settings.unix_socket else ""
        sys.stdout.write(f"keyheat listens on redis://{proxy.listen}{socket}, http on {http}\n")
        sys.stdout.flush()
        while not stop.wait(1.0):
            pass
        sys.stderr.write(f"draining, {options.drain_timeout_s:g} s at most\n")
        is_drained = proxy.drain(options.drain_timeout_s)
    if not is_drained:
        sys.stderr.write("keyheat: stopped with requests unanswered: the drain took too long\n")
    return 0 if is_drained else 1


def _settings(options: UpOptions) -> ProxySettings:
    try:
        return ProxySettings(
            upstream=parse_url(options.upstream) if options.upstream else None,
            listen=parse_address(options.listen, 6380),
            http=parse_address(options.http, 6381) if options.http else None,
            rules=load_rules(options.rules) if options.rules else None,
            **{name: value for name, value in options.proxy.items() if value is not None},
        )
    except ValidationError as error:
        raise ConfigError(explain(error)) from error
