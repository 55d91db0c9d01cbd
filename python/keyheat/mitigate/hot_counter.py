"""A counter that is hot by writes: increments spread over sub-keys, or collected in the process, or both.

**What it promises.** After `flush()` of every process, `value()` is the sum of all increments: a
batch whose outcome is unknown (a timeout after sending, a failover) is sent again under the same
number, and the server adds a number once. So redis-py's own retries cannot count twice either.
Increments sent at once (`interval_ms=0`) are plain `INCRBY`: what a timeout means there is what it
means to any `INCRBY`, and the client's retries decide.

**What can be lost.** A crash (SIGKILL, `os._exit`, power) loses what this process collected and had
not sent: at most `max_pending` increments, and while the server answers at most those of the last
`interval_ms` and of one round trip. An orderly exit loses nothing: context manager, `close()`, or
the end of the interpreter. A batch of unknown outcome that could not be settled for five minutes is
given up and counted (`unknown`); so is every such batch where the server refuses scripts.

**What it costs.** Collected: one `EVAL` per interval and process, whatever the number of increments.
Spread: `value()` is one `GET` per sub-key. A fold moves sub-key after sub-key; a reader meanwhile
misses what is being moved, and after a crash in the middle until the next `fold()`.

**Names.** Sub-keys are `keyheat:counter:{tag}:n:<key>` with fixed tags, one in each of `shards` even
parts of the slots, the same in every process whatever the topology. The choice among them takes the
primaries in turn, so each gets the same share of the writes if it owns one of the sub-keys: give at
least a few times as many `shards` as there are primaries.

**Concurrency.** Thread-safe; one flush at a time. A forked child starts with nothing pending.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from keyheat.clock import now_s
from keyheat.mitigate import _lifetime as lifetime
from keyheat.mitigate._counter_core import Amount, CounterCore, CounterSettings, CounterStats
from keyheat.mitigate._drive import Client, adrive, drive
from keyheat.mitigate._ticker import AsyncTicker, Ticker

__all__ = ["AsyncHotCounter", "CounterSettings", "CounterStats", "HotCounter"]

_ROUNDS_FOR_ROOM = 3


class HotCounter:
    """A hot counter on a blocking client; the module's text says what it promises.

    Args:
        client: redis-py's or valkey-py's, standalone or Cluster.
        key: The counter's key. What it holds already counts.
        settings: See `CounterSettings`.
        clock: Seconds, for tests.

    Raises:
        ConfigError: The key is neither bytes nor text.
    """

    def __init__(
        self,
        client: Client,
        key: bytes | str,
        settings: CounterSettings | None = None,
        *,
        clock: Callable[[], float] = now_s,
    ) -> None:
        self.enabled = True
        self._client = client
        self._core = CounterCore(client, key, settings or CounterSettings(), clock)
        self._flushing = threading.Lock()
        self._ticker = self._new_ticker()
        self._hook = lifetime.in_forked_child(self._forked)

    def incr(self, amount: Amount = 1) -> None:
        """Add to the counter; returns before the server knows, if increments are collected.

        Args:
            amount: What to add; negative to subtract.

        Raises:
            ConfigError: The amount does not fit the counter's kind.
        """
        core = self._core
        core.check(amount)
        if not self.enabled or core.settings.interval_ms == 0:
            drive(core.direct_steps(amount, spread=self.enabled), self._client)
            return
        if not core.add(amount) and not self._add_after_flush(amount):
            return
        lifetime.keep(self)
        self._ticker.start()

    def flush(self) -> None:
        """Send what is held; on return the server has counted it, or its error is raised."""
        with self._flushing:
            drive(self._core.flush_steps(), self._client)
            if not self._core.owes:
                lifetime.let_go(self)

    def value(self) -> Amount:
        """What the server holds: the counter's own key and all sub-keys. Call `flush()` first to be exact."""
        return drive(self._core.value_steps(), self._client)

    def fold(self) -> None:
        """Move all sub-keys into the counter's own key."""
        with self._flushing:
            drive(self._core.fold_steps(), self._client)

    def reset(self) -> None:
        """Forget what this process holds and delete the counter with all sub-keys."""
        with self._flushing:
            drive(self._core.reset_steps(), self._client)
            lifetime.let_go(self)

    def stats(self) -> CounterStats:
        """Counts since the object was made."""
        return self._core.stats

    def close(self) -> None:
        """Send what is held and end the thread; the client stays open.

        Raises what the client raises if it cannot be sent; it is kept then.
        """
        self._ticker.stop()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def flush_at_exit(self) -> None:
        """Called by the end of the interpreter."""
        try:
            self.flush()
        except Exception as error:
            self._core.say_lost(error)
            raise

    def _add_after_flush(self, amount: Amount) -> bool:
        """Make room by sending; False if the increment was dropped."""
        for _ in range(_ROUNDS_FOR_ROOM):
            try:
                self.flush()
            except Exception:
                if self._core.settings.on_full == "error":
                    raise
                break
            if self._core.add(amount):
                return True
        if self._core.settings.on_full == "error":
            drive(self._core.direct_steps(amount, spread=True), self._client)
        else:
            self._core.drop()
        return False

    def _tick(self) -> None:
        with contextlib.suppress(Exception):  # counted, kept, and raised by the next flush()
            self.flush()

    def _forked(self) -> None:
        self._core.forget()
        self._flushing = threading.Lock()
        self._ticker = self._new_ticker()

    def _new_ticker(self) -> Ticker:
        interval_s = max(self._core.settings.interval_ms, 1.0) / 1000
        return Ticker(self._tick, interval_s, "keyheat-hot-counter")


class AsyncHotCounter:
    """The same on an asyncio client; `asyncio.run` flushes it when it ends, as does `async with`."""

    def __init__(
        self,
        client: Client,
        key: bytes | str,
        settings: CounterSettings | None = None,
        *,
        clock: Callable[[], float] = now_s,
    ) -> None:
        self.enabled = True
        self._client = client
        self._core = CounterCore(client, key, settings or CounterSettings(), clock)
        self._flushing = asyncio.Lock()
        self._ticker = self._new_ticker()
        self._hook = lifetime.in_forked_child(self._forked)

    async def incr(self, amount: Amount = 1) -> None:
        """As `HotCounter.incr`."""
        core = self._core
        core.check(amount)
        if not self.enabled or core.settings.interval_ms == 0:
            await adrive(core.direct_steps(amount, spread=self.enabled), self._client)
            return
        if not core.add(amount) and not await self._add_after_flush(amount):
            return
        lifetime.keep(self)
        self._ticker.start()

    async def flush(self) -> None:
        """As `HotCounter.flush`."""
        async with self._flushing:
            await adrive(self._core.flush_steps(), self._client)
            if not self._core.owes:
                lifetime.let_go(self)

    async def value(self) -> Amount:
        """As `HotCounter.value`."""
        return await adrive(self._core.value_steps(), self._client)

    async def fold(self) -> None:
        """As `HotCounter.fold`."""
        async with self._flushing:
            await adrive(self._core.fold_steps(), self._client)

    async def reset(self) -> None:
        """As `HotCounter.reset`."""
        async with self._flushing:
            await adrive(self._core.reset_steps(), self._client)
            lifetime.let_go(self)

    def stats(self) -> CounterStats:
        """Counts since the object was made."""
        return self._core.stats

    async def aclose(self) -> None:
        """As `HotCounter.close`."""
        await self._ticker.stop()
        await self.flush()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def flush_at_exit(self) -> None:
        """No loop runs at the interpreter's end: what the task's end could not send is lost, and said."""
        self._core.say_lost(RuntimeError())

    async def _add_after_flush(self, amount: Amount) -> bool:
        for _ in range(_ROUNDS_FOR_ROOM):
            try:
                await self.flush()
            except Exception:
                if self._core.settings.on_full == "error":
                    raise
                break
            if self._core.add(amount):
                return True
        if self._core.settings.on_full == "error":
            await adrive(self._core.direct_steps(amount, spread=True), self._client)
        else:
            self._core.drop()
        return False

    async def _tick(self) -> None:
        with contextlib.suppress(Exception):  # counted, kept, and raised by the next flush()
            await self.flush()

    def _forked(self) -> None:
        self._core.forget()
        self._flushing = asyncio.Lock()
        self._ticker = self._new_ticker()

    def _new_ticker(self) -> AsyncTicker:
        interval_s = max(self._core.settings.interval_ms, 1.0) / 1000
        return AsyncTicker(self._tick, interval_s, at_end=self._tick)
