"""`keyheat up`."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from keyheat.cli.serving import Signals, serve
from keyheat.detect.rules import explain, load_rules
from keyheat.errors import ConfigError
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
    signals = Signals()
    with ExitStack() as stack:
        if options.upstream is None:
            from keyheat.server.embedded import EmbeddedServer

            server = stack.enter_context(EmbeddedServer())
            settings = settings.model_copy(update={"upstream": parse_url(server.url)})
            sys.stderr.write(f"embedded server {server.address} (its data ends with this command)\n")
        return serve(settings, signals)


def _settings(options: UpOptions) -> ProxySettings:
    try:
        return ProxySettings(
            upstream=parse_url(options.upstream, is_for_proxy=True) if options.upstream else None,
            listen=parse_address(options.listen, 6380),
            http=parse_address(options.http, 6381) if options.http else None,
            rules=load_rules(options.rules) if options.rules else None,
            drain_timeout_s=options.drain_timeout_s,
            **{name: value for name, value in options.proxy.items() if value is not None},
        )
    except ValidationError as error:
        raise ConfigError(explain(error)) from error
