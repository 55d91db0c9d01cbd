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
write the *server* refuses is dropped and counted, and its error raised by `flush()`.

Thread-safe; a forked child starts with nothing held.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from keyheat.mitigate import _checks as checks
from keyheat.mitigate import _lifetime as lifetime
from keyheat.mitigate._drive import (
    Batch,
    Client,
    Command,
    Reply,
    Steps,
    adrive,
    drive,
    encoder_of,
    is_refused_by_server,
)
from keyheat.mitigate._ticker import AsyncTicker, Ticker


@dataclass(frozen=True, slots=True)
class LastWriteSettings:
    """Settings of last-value writes.

    Attributes:
        interval_ms: How long writes are collected.
        max_keys: Keys held at most.
        max_bytes: Bytes of keys and values held at most; a larger write is sent at once.
    """

    interval_ms: float = 20.0
    max_keys: int = 10_000
    max_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        checks.at_least("interval_ms", self.interval_ms, 1)
        checks.whole_at_least("max_keys", self.max_keys, 1)
        checks.whole_at_least("max_bytes", self.max_bytes, 1)


@dataclass(slots=True)
class LastWriteStats:
    """What last-value writes have done.

    Attributes:
        writes: Calls of `set`.
        sent: SETs sent and acknowledged.
        left_out: Writes that a later one of the same key replaced.
        refused: Writes the server refused.
        failures: Flushes that failed.
        held: Keys held now.
        held_bytes: Bytes of them.
    """

    writes: int = 0
    sent: int = 0
    left_out: int = 0
    refused: int = 0
    failures: int = 0
    held: int = 0
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Write:
    key: bytes
    value: bytes
    options: tuple[Any, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.key) + len(self.value)

    @property
    def command(self) -> Command:
        return Command(("SET", self.key, self.value, *self.options))


class _Core:
    """What is held and how it is sent; callers serialise everything that yields."""

    def __init__(self, client: Client, settings: LastWriteSettings) -> None:
        self.settings = settings
        self.stats = LastWriteStats()
        self._encoder = encoder_of(client)
        self._log = checks.OnceLogger("keyheat.mitigate.last_write")
        self.forget()

    def forget(self) -> None:
        """Hold nothing: a forked child, whose parent sends what is held."""
        self._guard = threading.Lock()
        self._held: dict[bytes, _Write] = {}
        self._sending: dict[bytes, _Write] = {}
        self._bytes = 0
        self._count()

    def write(self, key: bytes | str, value: Any, options: tuple[Any, ...]) -> _Write:
        """A write as it will be sent."""
        self.stats.writes += 1
        return _Write(checks.as_bytes(key), bytes(self._encoder.encode(value)), options)

    def hold(self, write: _Write) -> bool:
        """Hold it in place of an earlier one; False if there is no room."""
        with self._guard:
            earlier = self._held.get(write.key)
            held_bytes = self._bytes + write.size_bytes - (earlier.size_bytes if earlier else 0)
            if held_bytes > self.settings.max_bytes:
                return False
            if earlier is None and len(self._held) + len(self._sending) >= self.settings.max_keys:
                return False
            self.stats.left_out += earlier is not None
            self._held[write.key] = write
            self._bytes = held_bytes
            self._count()
            return True

    def drop(self, key: bytes) -> None:
        """Hold a key's write no more: a later command replaces it."""
        with self._guard:
            write = self._held.pop(key, None)
            if write is not None:
                self.stats.left_out += 1
                self._bytes -= write.size_bytes
            self._count()

    @property
    def owes(self) -> bool:
        """Whether anything is unsent."""
        return bool(self._held or self._sending)

    def get_steps(self, key: bytes | str) -> Steps[Reply]:
        """The value held, else the server's."""
        name = checks.as_bytes(key)
        with self._guard:
            write = self._held.get(name) or self._sending.get(name)
        if write is None:
            return (yield Command(("GET", name)))
        return self._encoder.decode(write.value) if self._encoder.decode_responses else write.value

    def now_steps(self, command: Command) -> Steps[Reply]:
        """Send a command that replaces whatever is held of its key."""
        self.drop(command.args[1])
        return (yield command)

    def flush_steps(self) -> Steps[None]:
        """Send what is held; raises the first error after all were tried."""
        with self._guard:
            self._sending, self._held = self._held, {}
        writes = list(self._sending.values())
        if not writes:
            return
        try:
            replies = yield Batch(tuple(write.command for write in writes))
        except BaseException:
            self.stats.failures += 1
            self._settle({write.key: write for write in writes})
            raise
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        self._settle(self._again(writes, replies))
        if errors:
            self.stats.failures += 1
            raise errors[0]

    def _again(self, writes: list[_Write], replies: list[Reply]) -> dict[bytes, _Write]:
        """Of what was sent, what is to be sent again."""
        again = {}
        for write, reply in zip(writes, replies, strict=True):
            if not isinstance(reply, Exception):
                self.stats.sent += 1
            elif is_refused_by_server(reply):
                self.stats.refused += 1
                self._log.warning("refused", "a write was refused and dropped: %s", type(reply).__name__)
            else:
                again[write.key] = write
        return again

    def _settle(self, again: dict[bytes, _Write]) -> None:
        with self._guard:
            self._held = {**again, **self._held}
            self._sending = {}
            self._bytes = sum(write.size_bytes for write in self._held.values())
            self._count()

    def _count(self) -> None:
        self.stats.held = len(self._held) + len(self._sending)
        self.stats.held_bytes = self._bytes

    def say_lost(self, error: BaseException) -> None:
        """Log what an exit could not send."""
        self._log.warning(
            "exit", "%d writes were not sent at exit: %s", self.stats.held, type(error).__name__
        )


def _options(ex: int | None, px: int | None, *, keepttl: bool) -> tuple[Any, ...]:
    words: Iterator[tuple[Any, ...]] = iter(
        (
            ("EX", ex) if ex is not None else (),
            ("PX", px) if px is not None else (),
            ("KEEPTTL",) if keepttl else (),
        )
    )
    return tuple(word for option in words for word in option)


class LastWrite:
    """Last-value writes on a blocking client; the module's text says what is promised.

    Args:
        client: redis-py's or valkey-py's, standalone or Cluster.
        settings: See `LastWriteSettings`.
    """

    def __init__(self, client: Client, settings: LastWriteSettings | None = None) -> None:
        self.enabled = True
        self._client = client
        self._core = _Core(client, settings or LastWriteSettings())
        self._flushing = threading.Lock()
        self._ticker = self._new_ticker()
        self._hook = lifetime.in_forked_child(self._forked)

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
        write = self._core.write(key, value, _options(ex, px, keepttl=keepttl))
        if not self.enabled or write.size_bytes > self._core.settings.max_bytes:
            self._now(write.command)
            return True
        if not self._core.hold(write):
            self.flush()
            if not self._core.hold(write):
                self._now(write.command)
                return True
        lifetime.keep(self)
        self._ticker.start()
        return True

    def get(self, key: bytes | str) -> Reply:
        """The value held for a key, else the server's."""
        return drive(self._core.get_steps(key), self._client)

    def delete(self, key: bytes | str) -> int:
        """Delete a key; a write held for it is not sent any more.

        Returns:
            What DEL answers; a write that was only held does not count.
        """
        return int(self._now(Command(("DEL", checks.as_bytes(key)))))

    def flush(self) -> None:
        """Send what is held; on return the server has it, or its first error is raised."""
        with self._flushing:
            drive(self._core.flush_steps(), self._client)
            if not self._core.owes:
                lifetime.let_go(self)

    def stats(self) -> LastWriteStats:
        """Counts since the object was made."""
        return self._core.stats

    def close(self) -> None:
        """Send what is held and end the thread; the client stays open."""
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

    def _now(self, command: Command) -> Reply:
        with self._flushing:
            return drive(self._core.now_steps(command), self._client)

    def _tick(self) -> None:
        with contextlib.suppress(Exception):  # counted, kept, and raised by the next flush()
            self.flush()

    def _forked(self) -> None:
        self._core.forget()
        self._flushing = threading.Lock()
        self._ticker = self._new_ticker()

    def _new_ticker(self) -> Ticker:
        return Ticker(self._tick, self._core.settings.interval_ms / 1000, "keyheat-last-write")


class AsyncLastWrite:
    """The same on an asyncio client; `asyncio.run` flushes it when it ends, as does `async with`."""

    def __init__(self, client: Client, settings: LastWriteSettings | None = None) -> None:
        self.enabled = True
        self._client = client
        self._core = _Core(client, settings or LastWriteSettings())
        self._flushing = asyncio.Lock()
        self._ticker = self._new_ticker()
        self._hook = lifetime.in_forked_child(self._forked)

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
        write = self._core.write(key, value, _options(ex, px, keepttl=keepttl))
        if not self.enabled or write.size_bytes > self._core.settings.max_bytes:
            await self._now(write.command)
            return True
        if not self._core.hold(write):
            await self.flush()
            if not self._core.hold(write):
                await self._now(write.command)
                return True
        lifetime.keep(self)
        self._ticker.start()
        return True

    async def get(self, key: bytes | str) -> Reply:
        """As `LastWrite.get`."""
        return await adrive(self._core.get_steps(key), self._client)

    async def delete(self, key: bytes | str) -> int:
        """As `LastWrite.delete`."""
        return int(await self._now(Command(("DEL", checks.as_bytes(key)))))

    async def flush(self) -> None:
        """As `LastWrite.flush`."""
        async with self._flushing:
            await adrive(self._core.flush_steps(), self._client)
            if not self._core.owes:
                lifetime.let_go(self)

    def stats(self) -> LastWriteStats:
        """Counts since the object was made."""
        return self._core.stats

    async def aclose(self) -> None:
        """As `LastWrite.close`."""
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

    async def _now(self, command: Command) -> Reply:
        async with self._flushing:
            return await adrive(self._core.now_steps(command), self._client)

    async def _tick(self) -> None:
        with contextlib.suppress(Exception):  # counted, kept, and raised by the next flush()
            await self.flush()

    def _forked(self) -> None:
        self._core.forget()
        self._flushing = asyncio.Lock()
        self._ticker = self._new_ticker()

    def _new_ticker(self) -> AsyncTicker:
        return AsyncTicker(self._tick, self._core.settings.interval_ms / 1000, at_end=self._tick)
