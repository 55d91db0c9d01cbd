"""What calls a remedy now and then: a daemon thread, or an asyncio task.

It holds its owner weakly, so an object nobody uses any more ends its ticker; a forked child starts
its own at the next `start()`. A tick that raises is the owner's to count: nothing leaves here.
"""

import asyncio
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any


class Ticker:
    """A daemon thread that calls a bound method every `interval_s` until stopped.

    Args:
        tick: A bound method without arguments; held weakly.
        interval_s: Seconds between two calls.
        name: Name of the thread.
    """

    def __init__(self, tick: Callable[[], None], interval_s: float, name: str) -> None:
        self._tick = weakref.WeakMethod(tick)
        self._interval_s = interval_s
        self._name = name
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._guard = threading.Lock()

    def start(self) -> None:
        """Begin, unless it runs already in this process."""
        if self._thread is not None and self._pid == os.getpid():
            return
        if self._pid not in (0, os.getpid()):
            # Forked: the locks inside may be held by threads that do not exist here.
            self._guard, self._wake, self._stopped = threading.Lock(), threading.Event(), threading.Event()
        with self._guard:
            if self._thread is not None and self._pid == os.getpid():
                return
            self._pid = os.getpid()
            self._thread = threading.Thread(
                target=_run,
                args=(self._tick, self._interval_s, self._wake, self._stopped),
                name=self._name,
                daemon=True,
            )
            self._thread.start()

    def wake(self) -> None:
        """Tick now."""
        self._wake.set()

    def stop(self) -> None:
        """End it; waits for a tick under way."""
        if self._pid not in (0, os.getpid()):
            self._thread = None  # the parent's
            return
        with self._guard:
            self._stopped.set()
            self._wake.set()
            thread, self._thread = self._thread, None
            # The next one has its own: this one may be still at its tick.
            self._stopped, self._wake = threading.Event(), threading.Event()
        is_to_be_waited_for = self._pid == os.getpid() and thread is not threading.current_thread()
        if thread is not None and is_to_be_waited_for and not sys.is_finalizing():
            thread.join()

    def abandon(self) -> None:
        """End it without waiting: its owner is being collected."""
        self._stopped.set()
        self._wake.set()


def _run(
    tick: "weakref.WeakMethod[Callable[[], None]]",
    interval_s: float,
    wake: threading.Event,
    stopped: threading.Event,
) -> None:
    while True:
        wake.wait(interval_s)
        wake.clear()
        if stopped.is_set():
            return
        call = tick()
        if call is None:
            return
        call()
        del call


class AsyncTicker:
    """The same as an asyncio task; its last act, when the loop ends, is `at_end`.

    Args:
        tick: A coroutine function without arguments, a bound method; held weakly.
        interval_s: Seconds between two calls.
        at_end: What to await when the task is cancelled from outside, as `asyncio.run` does at its end.
    """

    def __init__(
        self,
        tick: Callable[[], Awaitable[None]],
        interval_s: float,
        at_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._tick: Any = weakref.WeakMethod(tick)
        self._at_end: Any = weakref.WeakMethod(at_end) if at_end is not None else lambda: None
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._is_stopping = False
        self._pid = 0

    def start(self) -> None:
        """Begin in the running loop, unless it runs already."""
        loop = asyncio.get_running_loop()
        task = self._task if self._pid == os.getpid() else None
        if task is not None and task.get_loop() is loop and not task.done():
            return
        self._pid = os.getpid()
        self._is_stopping = False
        self._wake = asyncio.Event()
        self._task = loop.create_task(self._run(self._wake))

    def wake(self) -> None:
        """Tick now."""
        if self._wake is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self._wake.set()

    async def stop(self) -> None:
        """End it without `at_end`; waits for a tick under way, which is not cancelled."""
        self._is_stopping = True
        task, self._task = self._task, None
        if task is None or self._pid != os.getpid() or task is asyncio.current_task():
            return
        if task.get_loop() is asyncio.get_running_loop():  # one of another loop has ended with it
            self.wake()
            await asyncio.wait([task])

    async def _run(self, wake: asyncio.Event) -> None:
        try:
            while True:
                # Not wait_for: before Python 3.12 it may swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await wake.wait()
                wake.clear()
                if self._is_stopping:
                    return
                call = self._tick()
                if call is None:
                    return
                await call()
                del call
        except asyncio.CancelledError:
            last = self._at_end()
            if last is not None and not self._is_stopping:
                await last()
            raise
