"""One algorithm, two ways to wait: steps are yielded, and done blocking or awaited.

An algorithm here is a generator. It yields a step whenever it has to wait for something (a call of the
user's function, a command to a client, a latch, a pause), is sent what came of it, and has the exception
thrown into it where there was one. `drive` does the steps in a thread, `drive_async` in a task; so nothing
is written twice, and the algorithms can be tested without either. A step is whatever has the two methods
of `Step`: those of clients are in `_commands.py`, that of latches in `latch.py`.

When a task is cancelled, `CancelledError` is thrown into the algorithm, which may yield further steps to
clean up. When a coroutine is dropped unfinished, the generator is closed, and must not yield any more.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Step(Protocol):
    """Something to wait for."""

    def run(self) -> object:
        """Do it, blocking the thread."""

    def run_async(self) -> Awaitable[object]:
        """Do it, without blocking the event loop."""


Steps = Generator[Step, Any, T]


class Call:
    """Call a function; in a task its result is awaited if it can be."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def run(self) -> object:
        """Do it, blocking the thread."""
        return self._function()

    async def run_async(self) -> object:
        """Do it, without blocking the event loop."""
        result = self._function()
        return await result if inspect.isawaitable(result) else result


class Sleep:
    """Wait for a time."""

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def run(self) -> None:
        """Do it, blocking the thread."""
        time.sleep(self._seconds)

    async def run_async(self) -> None:
        """Do it, without blocking the event loop."""
        await asyncio.sleep(self._seconds)


def drive(steps: Steps[T]) -> T:
    """Do the steps in this thread; what they return or raise passes through."""
    try:
        step = next(steps)
        while True:
            try:
                result = step.run()
            except BaseException as error:  # noqa: BLE001 - the algorithm decides what becomes of it
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


async def drive_async(steps: Steps[T]) -> T:
    """Do the steps in this task; what they return or raise passes through."""
    try:
        step = next(steps)
        while True:
            try:
                result = await step.run_async()
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:  # noqa: BLE001 - the algorithm decides what becomes of it
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
