"""A one-shot signal that threads and the tasks of any event loop can wait for.

Set once, it wakes everybody: threads by a condition, tasks by one `call_soon_threadsafe` per event loop,
however many of its tasks wait. Nothing is polled. A loop that has been closed has nobody to wake.
"""

import asyncio
import contextlib
import threading


class Latch:
    """Unset until `set` is called, then set for good."""

    __slots__ = ("_condition", "_is_set", "_tasks")

    def __init__(self) -> None:
        # A Condition's lock is re-entrant: a finalizer run in here may set this very latch.
        self._condition = threading.Condition()
        self._is_set = False
        self._tasks: dict[asyncio.AbstractEventLoop, set[asyncio.Future[None]]] = {}

    @property
    def is_set(self) -> bool:
        """Whether it has been set."""
        return self._is_set

    def set(self) -> None:
        """Wake all who wait, and let all who come later pass."""
        with self._condition:
            if self._is_set:
                return
            self._is_set = True
            tasks, self._tasks = self._tasks, {}
            self._condition.notify_all()
        for loop, futures in tasks.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_resolve_all, futures)

    def wait(self, timeout_s: float) -> bool:
        """Block this thread until it is set; False if it is not within `timeout_s`."""
        with self._condition:
            return self._condition.wait_for(lambda: self._is_set, timeout_s)

    async def wait_async(self, timeout_s: float) -> bool:
        """Wait in this task until it is set; False if it is not within `timeout_s`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._condition:
            if self._is_set:
                return True
            self._tasks.setdefault(loop, set()).add(future)
        timer = loop.call_later(timeout_s, _resolve, future)
        try:
            await future
        finally:
            timer.cancel()
            with self._condition:
                self._tasks.get(loop, set()).discard(future)
        return self._is_set


class WaitFor:
    """The step of waiting for a latch; its result is whether it was set in time."""

    __slots__ = ("_latch", "_timeout_s")

    def __init__(self, latch: Latch, timeout_s: float) -> None:
        self._latch = latch
        self._timeout_s = timeout_s

    def run(self) -> object:
        """Do it, blocking the thread."""
        return self._latch.wait(self._timeout_s)

    async def run_async(self) -> object:
        """Do it, without blocking the event loop."""
        return await self._latch.wait_async(self._timeout_s)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _resolve_all(futures: "set[asyncio.Future[None]]") -> None:
    for future in list(futures):
        _resolve(future)
