"""Last-value writes: of many SETs of a hot key within an interval only the last is sent. Opt-in.

For values of which only the newest counts: a price, a position, a score. `set` returns at once;
every `interval_ms` what is held is sent in one pipeline, one `SET` per key.

**Order.** Writes of one key through one object reach the server in their order, with those in between
left out; `delete` and writes that are not collected wait for what is on its way. Writes of different
keys may be sent in any order. A command sent through the client itself, or by another process,
overtakes what is held: call `flush()` first where that matters. `get` answers from what is held
(read-your-writes), for this object only.

**Expiry.** `ex` and `px` count from when the write is sent, so up to an interval later.

**What can be lost.** A crash loses what is held: at most the last write of `max_keys` keys, and while
the server answers at most those of the last `interval_ms` and of one round trip. An orderly exit
loses nothing (context manager, `close()`, the end of the interpreter). While the server is down
writes are held up to `max_keys` and `max_bytes`; past that `set` raises what the client raises. After
an unknown outcome a write is sent again, which can undo a write another process made in between. A
write the *server* refuses is dropped and counted, and its error raised by `flush()`; one it only
cannot take now (it is a replica after a failover, a slot moves) is held.

Thread-safe; a forked child starts with nothing held.
"""

from typing import Any

from keyheat.mitigate._commands import Client, Reply
from keyheat.mitigate._last_write_core import LastWriteCore, LastWriteSettings, LastWriteStats, options_of
from keyheat.mitigate._ticked import AsyncCollecting, Collecting
from keyheat.mitigate.steps import drive, drive_async

__all__ = ["AsyncLastWrite", "LastWrite", "LastWriteSettings", "LastWriteStats"]


class LastWrite(Collecting[LastWriteCore]):
    """Last-value writes on a blocking client; the module's text says what is promised.

    Args:
        client: redis-py's or valkey-py's, standalone or Cluster.
        settings: See `LastWriteSettings`.
    """

    def __init__(self, client: Client, settings: LastWriteSettings | None = None) -> None:
        core = LastWriteCore(client, settings or LastWriteSettings())
        super().__init__(core, core.settings.interval_ms / 1000, "keyheat-last-write")

    def set(
        self,
        key: bytes | str,
        value: Any,
        *,
        ex: int | None = None,
        px: int | None = None,
        keepttl: bool = False,
    ) -> bool:
        """Write a value; on return it is held, and sent within the interval.

        Args:
            key: The key.
            value: What the client would take.
            ex: Time to live in seconds, from when it is sent.
            px: The same in milliseconds.
            keepttl: Leave the key's expiry as it is.

        Returns:
            True.
        """
        write = self._core.write(key, value, options_of(ex, px, keepttl=keepttl))
        if not self.enabled or write.size_bytes > self._core.settings.max_bytes:
            self._alone(self._core.now_steps(write.words))
            return True
        if not self._core.hold(write):
            self.flush()
            if not self._core.hold(write):
                self._alone(self._core.now_steps(write.words))
                return True
        self._holds()
        return True

    def get(self, key: bytes | str) -> Reply:
        """The value held for a key, else the server's."""
        return drive(self._core.get_steps(key))

    def delete(self, key: bytes | str) -> int:
        """Delete a key; a write held for it is not sent any more.

        Returns:
            What DEL answers; a write that was only held does not count.
        """
        return int(self._alone(self._core.delete_steps(key)))

    def stats(self) -> LastWriteStats:
        """Counts since the object was made."""
        return self._core.stats


class AsyncLastWrite(AsyncCollecting[LastWriteCore]):
    """The same on an asyncio client; `asyncio.run` flushes it when it ends, as does `async with`."""

    def __init__(self, client: Client, settings: LastWriteSettings | None = None) -> None:
        core = LastWriteCore(client, settings or LastWriteSettings())
        super().__init__(core, core.settings.interval_ms / 1000)

    async def set(
        self,
        key: bytes | str,
        value: Any,
        *,
        ex: int | None = None,
        px: int | None = None,
        keepttl: bool = False,
    ) -> bool:
        """As `LastWrite.set`."""
        write = self._core.write(key, value, options_of(ex, px, keepttl=keepttl))
        if not self.enabled or write.size_bytes > self._core.settings.max_bytes:
            await self._alone(self._core.now_steps(write.words))
            return True
        if not self._core.hold(write):
            await self.flush()
            if not self._core.hold(write):
                await self._alone(self._core.now_steps(write.words))
                return True
        self._holds()
        return True

    async def get(self, key: bytes | str) -> Reply:
        """As `LastWrite.get`."""
        return await drive_async(self._core.get_steps(key))

    async def delete(self, key: bytes | str) -> int:
        """As `LastWrite.delete`."""
        return int(await self._alone(self._core.delete_steps(key)))

    def stats(self) -> LastWriteStats:
        """Counts since the object was made."""
        return self._core.stats
