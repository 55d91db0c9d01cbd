"""A keyheat in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from keyheat.server import child

_LAUNCHER: Final = Path(__file__).with_name("launcher.py")


def launch_keyheat(settings: dict[str, object], log: Path) -> "tuple[subprocess.Popen[bytes], int] | None":
    """Start it; its process and its port, or None where it did not start: its log says why."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(_LAUNCHER), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            process_group=0,
        )
    line = process.stdout.readline() if process.stdout else b""
    if not line:
        child.end(process)
        return None
    return process, int(json.loads(line)["listen"].rpartition(":")[2])
