"""Copies of a hot key on the other primaries of a Cluster: reads spread, writes void them first.

One node's share of a hot key's reads becomes 1/n of n primaries: each read goes at random to the
original or to one of the copies, and the copies' names carry hash tags chosen by slot so that each
lies on another primary. (Names numbered `_1 … _16` fall where they fall.) Any type is copied, by
`DUMP` and `RESTORE`, which `COPY` between slots would refuse.

**Bound.** A read answered by a copy is at most `max_staleness_ms` old, while the primaries' clocks
differ by at most `clock_skew_ms`. A write through `write()` (or followed by `invalidate()`) in a
process that was told the key is hot is acknowledged when no copy from before it is left; a write from
anywhere else is seen within the bound. `_copies_core.py` says why.

**Cost.** The owner, one process per key, asks the original's node four times per third of the bound,
and each copy's once; the value travels only when it changed. A write costs two round trips more. A
read whose reply is empty is asked again of the original, for an absent copy answers the same.

**Falls back** to the original, with `state(key).reason`: no other primary, value missing, larger than
`copy_max_bytes`, scripts or `DUMP` or `RESTORE` refused, a copy's node down.

**Ends.** `cool(key)` and `close()` delete what this process owns; a crash leaves nothing for longer
than four times the bound.
"""

from collections.abc import Callable, Mapping
from typing import Any

from keyheat.clock import now_s
from keyheat.mitigate._commands import Client, Reply
from keyheat.mitigate._copies_core import CopiedKey, CopiesCore, CopiesSettings, CopiesStats
from keyheat.mitigate._ticked import AsyncTicked, Ticked
from keyheat.mitigate.steps import drive, drive_async

__all__ = ["AsyncCopies", "CopiedKey", "Copies", "CopiesSettings", "CopiesStats"]

_TICKS_PER_ROUND = 4


class Copies(Ticked[CopiesCore]):
    """Copies on a blocking Cluster client.

    Args:
        client: redis-py's or valkey-py's Cluster client.
        settings: See `CopiesSettings`.
        is_lock: Says of a key whether it is a lock; locks are never copied.
        clock: Seconds, for tests.

    Raises:
        ConfigError: The client is not one of a Cluster.
    """

    def __init__(
        self,
        client: Client,
        settings: CopiesSettings | None = None,
        *,
        is_lock: Callable[[bytes], bool] | None = None,
        clock: Callable[[], float] = now_s,
    ) -> None:
        core = CopiesCore(client, settings or CopiesSettings(), clock, is_lock)
        super().__init__(core, core.round_s / _TICKS_PER_ROUND, "keyheat-copies")

    def heat(self, key: bytes | str) -> bool:
        """Told that a key is hot: copies are made, by this process or another.

        Returns:
            False if the key is not taken: a lock, one of keyheat's own, or `keys_max` are.
        """
        taken = self._core.heat(key)
        if taken:
            self._begin()
        return taken

    def cool(self, key: bytes | str) -> None:
        """Told that a key is hot no more: its owner deletes the copies."""
        with self._rounds:
            drive(self._core.cool_steps(key))

    def read(self, *args: Any, **options: Any) -> Reply:
        """Run a read of one key, on a copy if it is hot and the command can be answered by one."""
        return drive(self._core.read_steps(args, options, enabled=self.enabled))

    def read_key(self, key: bytes, args: tuple[Any, ...], options: Mapping[str, Any]) -> Reply:
        """As `read`, of a key as the server sees it, whatever the application calls it by."""
        return drive(self._core.read_steps(args, options, enabled=self.enabled, key=key))

    def write(self, *args: Any) -> Reply:
        """Run a write of one key; returns when no copy from before it is left."""
        reply = drive(self._core.write_steps(args, enabled=self.enabled))
        self._ticker.wake()
        return reply

    def invalidate(self, key: bytes | str) -> None:
        """To be called after a write made elsewhere, before its reply is passed on."""
        if self.enabled:
            drive(self._core.invalidate_steps(key))
            self._ticker.wake()

    def void(self, key: bytes) -> None:
        """As `invalidate`, also for a key that another object of this process may have copied."""
        if self.enabled:
            drive(self._core.void_steps(key))
            self._ticker.wake()

    def round(self) -> None:
        """Do now what the thread does now and then: renew the copies this process owns."""
        with self._rounds:
            drive(self._core.round_steps(enabled=self.enabled))

    def state(self, key: bytes | str) -> CopiedKey | None:
        """What this process knows of a hot key; None for others."""
        return self._core.state(key)

    def stats(self) -> CopiesStats:
        """Counts since the object was made."""
        return self._core.stats

    def close(self) -> None:
        """Delete the copies this process owns and end the thread; the client stays open."""
        self._ticker.stop()
        for state in self._core.hot():
            self.cool(state.key)
        drive(self._core.close_steps())

    def _round(self) -> None:
        self.round()


class AsyncCopies(AsyncTicked[CopiesCore]):
    """The same on an asyncio Cluster client."""

    def __init__(
        self,
        client: Client,
        settings: CopiesSettings | None = None,
        *,
        is_lock: Callable[[bytes], bool] | None = None,
        clock: Callable[[], float] = now_s,
    ) -> None:
        core = CopiesCore(client, settings or CopiesSettings(), clock, is_lock)
        super().__init__(core, core.round_s / _TICKS_PER_ROUND)

    def heat(self, key: bytes | str) -> bool:
        """As `Copies.heat`; in a running loop."""
        taken = self._core.heat(key)
        if taken:
            self._begin()
        return taken

    async def cool(self, key: bytes | str) -> None:
        """As `Copies.cool`."""
        async with self._rounds:
            await drive_async(self._core.cool_steps(key))

    async def read(self, *args: Any, **options: Any) -> Reply:
        """As `Copies.read`."""
        return await drive_async(self._core.read_steps(args, options, enabled=self.enabled))

    async def read_key(self, key: bytes, args: tuple[Any, ...], options: Mapping[str, Any]) -> Reply:
        """As `read`, of a key as the server sees it, whatever the application calls it by."""
        return await drive_async(self._core.read_steps(args, options, enabled=self.enabled, key=key))

    async def write(self, *args: Any) -> Reply:
        """As `Copies.write`."""
        reply = await drive_async(self._core.write_steps(args, enabled=self.enabled))
        self._ticker.wake()
        return reply

    async def invalidate(self, key: bytes | str) -> None:
        """As `Copies.invalidate`."""
        if self.enabled:
            await drive_async(self._core.invalidate_steps(key))
            self._ticker.wake()

    async def void(self, key: bytes) -> None:
        """As `Copies.void`."""
        if self.enabled:
            await drive_async(self._core.void_steps(key))
            self._ticker.wake()

    async def round(self) -> None:
        """As `Copies.round`."""
        async with self._rounds:
            await drive_async(self._core.round_steps(enabled=self.enabled))

    def state(self, key: bytes | str) -> CopiedKey | None:
        """What this process knows of a hot key; None for others."""
        return self._core.state(key)

    def stats(self) -> CopiesStats:
        """Counts since the object was made."""
        return self._core.stats

    async def aclose(self) -> None:
        """As `Copies.close`."""
        await self._ticker.stop()
        for state in self._core.hot():
            await self.cool(state.key)
        await drive_async(self._core.close_steps())

    async def _round(self) -> None:
        await self.round()
