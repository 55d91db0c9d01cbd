"""Does a connection lead to the server process that tracks the key?

A value may only be kept if it was read from the process whose invalidations are listened to. Host and
port do not tell: behind a name or an address that moves (Sentinel, DNS, a load balancer) a pooled
connection may still lead to yesterday's primary. A process is known by its `run_id`, and a socket leads
to the same process for as long as it lives, so each socket is asked once.
"""

import weakref
from typing import Final

_processes: Final["weakref.WeakKeyDictionary[object, str]"] = weakref.WeakKeyDictionary()


def known(socket: object) -> str | None:
    """The process behind `socket`, if it was asked before; empty if it would not tell."""
    return _processes.get(socket)


def remember(socket: object, info: object) -> str:
    """Note what `INFO server` said on `socket`; empty where it does not tell."""
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else str(info)
    lines = (line for line in text.splitlines() if line.startswith("run_id:"))
    process = next(lines, "run_id:").removeprefix("run_id:").strip()
    _processes[socket] = process
    return process


def is_refusal(error: Exception) -> bool:
    """Whether the server answered, and said no, in either library: nothing is left to be read."""
    return any(cls.__name__ == "ResponseError" for cls in type(error).__mro__)
