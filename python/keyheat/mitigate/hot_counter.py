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

from collections.abc import Callable

from keyheat.clock import now_s
from keyheat.mitigate import _lifetime as lifetime
from keyheat.mitigate._commands import Client
from keyheat.mitigate._counter_core import Amount, CounterCore, CounterSettings, CounterStats
from keyheat.mitigate._ticked import AsyncCollecting, Collecting
from keyheat.mitigate.steps import drive, drive_async

__all__ = ["AsyncHotCounter", "CounterSettings", "CounterStats", "HotCounter"]

_ROUNDS_FOR_ROOM = 3


class HotCounter(Collecting[CounterCore]):
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
        core = CounterCore(client, key, settings or CounterSettings(), clock)
        super().__init__(core, _interval_s(core.settings), "keyheat-hot-counter")

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
            drive(core.direct_steps(amount, spread=self.enabled))
            return
        if not core.add(amount) and not self._add_after_flush(amount):
            return
        self._holds()

    def value(self) -> Amount:
        """What the server holds: the counter's own key and all sub-keys. Call `flush()` first to be exact."""
        return drive(self._core.value_steps())

    def fold(self) -> None:
        """Move all sub-keys into the counter's own key."""
        self._alone(self._core.fold_steps())

    def reset(self) -> None:
        """Forget what this process holds and delete the counter with all sub-keys."""
        with self._rounds:
            drive(self._core.reset_steps())
            lifetime.let_go(self)

    def stats(self) -> CounterStats:
        """Counts since the object was made."""
        return self._core.stats

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
            drive(self._core.direct_steps(amount, spread=True))
        else:
            self._core.drop()
        return False


class AsyncHotCounter(AsyncCollecting[CounterCore]):
    """The same on an asyncio client; `asyncio.run` flushes it when it ends, as does `async with`."""

    def __init__(
        self,
        client: Client,
        key: bytes | str,
        settings: CounterSettings | None = None,
        *,
        clock: Callable[[], float] = now_s,
    ) -> None:
        core = CounterCore(client, key, settings or CounterSettings(), clock)
        super().__init__(core, _interval_s(core.settings))

    async def incr(self, amount: Amount = 1) -> None:
        """As `HotCounter.incr`."""
        core = self._core
        core.check(amount)
        if not self.enabled or core.settings.interval_ms == 0:
            await drive_async(core.direct_steps(amount, spread=self.enabled))
            return
        if not core.add(amount) and not await self._add_after_flush(amount):
            return
        self._holds()

    async def value(self) -> Amount:
        """As `HotCounter.value`."""
        return await drive_async(self._core.value_steps())

    async def fold(self) -> None:
        """As `HotCounter.fold`."""
        await self._alone(self._core.fold_steps())

    async def reset(self) -> None:
        """As `HotCounter.reset`."""
        async with self._rounds:
            await drive_async(self._core.reset_steps())
            lifetime.let_go(self)

    def stats(self) -> CounterStats:
        """Counts since the object was made."""
        return self._core.stats

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
            await drive_async(self._core.direct_steps(amount, spread=True))
        else:
            self._core.drop()
        return False


def _interval_s(settings: CounterSettings) -> float:
    return max(settings.interval_ms, 1.0) / 1000
