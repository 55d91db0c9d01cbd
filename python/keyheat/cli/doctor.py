"""`keyheat doctor`."""

import json
import sys

from rich.console import Console
from rich.text import Text

from keyheat.doctor.checks import Doctor
from keyheat.proxy.url import parse_url

_FOUND_WIDTH = 48


def run(url: str, *, as_json: bool) -> int:
    """Examine the server and print the report."""
    doctor = Doctor(parse_url(url))
    try:
        if as_json:
            list(doctor.checks())
            sys.stdout.write(json.dumps(doctor.examination.to_json()) + "\n")
            return 0
        console = Console(highlight=False, soft_wrap=True)
        console.print(Text(doctor.examination.server))
        for check in doctor.checks():
            mark = ("ok", "green") if check.is_ok else ("no", "yellow")
            line = Text.assemble(mark, f"  {check.name:<9}{check.found:<{_FOUND_WIDTH}} → {check.leaves}")
            console.print(line)
    finally:
        doctor.close()
    return 0
