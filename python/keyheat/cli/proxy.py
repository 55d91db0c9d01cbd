"""`keyheat proxy`."""

import sys

from keyheat.cli.serving import Signals, serve
from keyheat.proxy.config import ConfigSource
from keyheat.proxy.native import make_proxy


def run(source: ConfigSource) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain; SIGHUP reads the file anew."""
    settings = source.load()
    return serve(settings, Signals(), None if source.path is None else source.load)


def check(source: ConfigSource) -> int:
    """Say whether a proxy could be started with these settings; what is wrong is raised."""
    make_proxy(source.load())
    sys.stdout.write(f"{source.path or 'the settings'}: ok\n")
    return 0
