"""What outlives a call: objects that owe the server something are kept, flushed at exit, emptied by a fork.

An object that holds unsent writes is kept alive here until they are sent, so one that goes out of
scope loses nothing. At a normal end of the interpreter (`atexit`: the end of the main program,
`sys.exit`, also from a SIGTERM handler) each is flushed once. `os._exit`, SIGKILL and an unhandled
SIGTERM end a process without asking anybody; so does the end of a `multiprocessing` child, which
should close its objects itself.

A forked child forgets what the parent owes: the parent still sends it.
"""

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol


class Owing(Protocol):
    """Something that may owe the server writes."""

    def flush_at_exit(self) -> None:
        """Send what is owed, once, and say so in the log if that fails."""


_owing: set[Owing] = set()
_guard = threading.Lock()
_after_fork: "weakref.WeakSet[_ForkHook]" = weakref.WeakSet()


class _ForkHook:
    """Lives as long as its object does; runs its object's method in a forked child."""

    def __init__(self, method: Callable[[], None]) -> None:
        self._method = weakref.WeakMethod(method)

    def __call__(self) -> None:
        method = self._method()
        if method is not None:
            method()


def keep(owing: Owing) -> None:
    """Keep an object alive until `let_go`, and flush it at exit."""
    with _guard:
        _owing.add(owing)


def let_go(owing: Owing) -> None:
    """It owes nothing any more."""
    with _guard:
        _owing.discard(owing)


def in_forked_child(method: Callable[[], None]) -> object:
    """Have a bound method called in every forked child.

    Returns:
        What its object has to hold: the arrangement ends with it.
    """
    hook = _ForkHook(method)
    _after_fork.add(hook)
    return hook


def _flush_all() -> None:
    with _guard:
        owing = list(_owing)
    for each in owing:
        with contextlib.suppress(Exception):
            each.flush_at_exit()


def _forget_all() -> None:
    global _guard  # noqa: PLW0603 - the old one may be held by a thread that does not exist here
    _guard = threading.Lock()
    _owing.clear()
    for hook in list(_after_fork):
        hook()


atexit.register(_flush_all)
os.register_at_fork(after_in_child=_forget_all)
