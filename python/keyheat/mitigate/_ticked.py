"""What remedies with a background ticker share: one round at a time, the end, a fork; blocking and asyncio.

A *round* is what the ticker does: renew copies, poll replicas, send what was collected. A remedy says
what that is (`_round`) and what its end is (`close`); one that collects writes says both by its core's
`flush_steps`, and is flushed at the interpreter's end too (`_lifetime.py`).
"""

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from keyheat.mitigate import _lifetime as lifetime
from keyheat.mitigate._ticker import AsyncTicker, Ticker
from keyheat.mitigate.steps import Steps, drive, drive_async


class Core(Protocol):
    """What a remedy knows and does, without I/O."""

    def forget(self) -> None:
        """Start anew in a forked child, whose parent goes on."""


class CollectingCore(Core, Protocol):
    """A core that may owe the server writes."""

    @property
    def owes(self) -> bool:
        """Whether anything is unsent."""

    def flush_steps(self) -> Steps[None]:
        """Send what is held."""

    def say_lost(self, error: BaseException) -> None:
        """Log what an exit could not send."""


C = TypeVar("C", bound=Core)
W = TypeVar("W", bound=CollectingCore)


class Ticked(Generic[C]):
    """A remedy on a blocking client; its rounds are done by a daemon thread.

    Args:
        core: The algorithm.
        interval_s: Seconds between two rounds.
        name: Name of the thread.
    """

    def __init__(self, core: C, interval_s: float, name: str) -> None:
        self.enabled = True
        self._core = core
        self._interval_s = interval_s
        self._name = name
        self._start_anew()
        self._hook = lifetime.in_forked_child(self._forked)

    def close(self) -> None:
        """End it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _round(self) -> None:
        raise NotImplementedError

    def _tick(self) -> None:
        with contextlib.suppress(Exception):  # counted by the core
            self._round()

    def _begin(self) -> None:
        """Have a round now, and then again and again."""
        self._ticker.start()
        self._ticker.wake()

    def _forked(self) -> None:
        self._core.forget()
        self._start_anew()

    def _start_anew(self) -> None:
        self._rounds = threading.Lock()
        self._ticker = Ticker(self._tick, self._interval_s, self._name)


class AsyncTicked(Generic[C]):
    """The same on an asyncio client; its rounds are done by a task."""

    _has_last_round: ClassVar[bool] = False

    def __init__(self, core: C, interval_s: float) -> None:
        self.enabled = True
        self._core = core
        self._interval_s = interval_s
        self._start_anew()
        self._hook = lifetime.in_forked_child(self._forked)

    async def aclose(self) -> None:
        """End it."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _round(self) -> None:
        raise NotImplementedError

    async def _tick(self) -> None:
        with contextlib.suppress(Exception):  # counted by the core
            await self._round()

    def _begin(self) -> None:
        """Have a round now, and then again and again."""
        self._ticker.start()
        self._ticker.wake()

    def _forked(self) -> None:
        self._core.forget()
        self._start_anew()

    def _start_anew(self) -> None:
        self._rounds = asyncio.Lock()
        at_end = self._tick if self._has_last_round else None
        self._ticker = AsyncTicker(self._tick, self._interval_s, at_end)


class Collecting(Ticked[W]):
    """A remedy that holds writes for a while, and sends them in rounds."""

    def flush(self) -> None:
        """Send what is held; on return the server has it, or its first error is raised."""
        with self._rounds:
            drive(self._core.flush_steps())
            if not self._core.owes:
                lifetime.let_go(self)

    def close(self) -> None:
        """Send what is held and end the thread; the client stays open.

        Raises what the client raises if it cannot be sent; it is kept then.
        """
        self._ticker.stop()
        self.flush()

    def flush_at_exit(self) -> None:
        """Called by the end of the interpreter."""
        try:
            self.flush()
        except Exception as error:
            self._core.say_lost(error)
            raise

    def _round(self) -> None:
        self.flush()

    def _holds(self) -> None:
        """Something is held now: it is to be sent, and not to be lost."""
        lifetime.keep(self)
        self._ticker.start()

    def _alone(self, steps: Steps[Any]) -> Any:
        """Do the steps while no flush is under way."""
        with self._rounds:
            return drive(steps)


class AsyncCollecting(AsyncTicked[W]):
    """The same on an asyncio client; its last round is when its task is cancelled by the loop's end."""

    _has_last_round = True

    async def flush(self) -> None:
        """Send what is held; on return the server has it, or its first error is raised."""
        async with self._rounds:
            await drive_async(self._core.flush_steps())
            if not self._core.owes:
                lifetime.let_go(self)

    async def aclose(self) -> None:
        """Send what is held and end the task; the client stays open.

        Raises what the client raises if it cannot be sent; it is kept then.
        """
        await self._ticker.stop()
        await self.flush()

    def flush_at_exit(self) -> None:
        """No loop runs at the interpreter's end: what the task's end could not send is lost, and said."""
        self._core.say_lost(RuntimeError())

    async def _round(self) -> None:
        await self.flush()

    def _holds(self) -> None:
        """Something is held now: it is to be sent, and not to be lost."""
        lifetime.keep(self)
        self._ticker.start()

    async def _alone(self, steps: Steps[Any]) -> Any:
        """Do the steps while no flush is under way."""
        async with self._rounds:
            return await drive_async(steps)
