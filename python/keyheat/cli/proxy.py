"""`keyheat proxy`."""

import sys
import threading

from keyheat.cli.serving import catch_signals, serve
from keyheat.proxy.config import ConfigSource
from keyheat.proxy.native import make_proxy


def run(source: ConfigSource) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain."""
    settings = source.load()
    stop = threading.Event()
    catch_signals(stop)
    return serve(settings, stop)


def check(source: ConfigSource) -> int:
    """Say whether a proxy could be started with these settings; what is wrong is raised."""
    make_proxy(source.load())
    sys.stdout.write(f"{source.path or 'the settings'}: ok\n")
    return 0
