"""What last-value writes hold and how it is sent: the part sync and asyncio share, without I/O.

State is two tables: what is *held*, one write per key, and what is being *sent*. A write that came to
nothing for want of an answer is held again, unless a later one of its key is held by then.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keyheat.mitigate import _checks as checks
from keyheat.mitigate._commands import Batch, Client, Command, Reply, encoder_of, is_refused_by_server
from keyheat.mitigate.steps import Steps


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
class Write:
    """One SET as it will be sent."""

    key: bytes
    value: bytes
    options: tuple[Any, ...]

    @property
    def size_bytes(self) -> int:
        """What it counts for against `max_bytes`."""
        return len(self.key) + len(self.value)

    @property
    def words(self) -> tuple[Any, ...]:
        """The command line."""
        return ("SET", self.key, self.value, *self.options)


class LastWriteCore:
    """What is held and how it is sent; callers serialise everything that yields."""

    def __init__(self, client: Client, settings: LastWriteSettings) -> None:
        self.settings = settings
        self.stats = LastWriteStats()
        self._client = client
        self._encoder = encoder_of(client)
        self._log = checks.OnceLogger("keyheat.mitigate.last_write")
        self.forget()

    def forget(self) -> None:
        """Hold nothing: a forked child, whose parent sends what is held."""
        self._guard = threading.Lock()
        self._held: dict[bytes, Write] = {}
        self._sending: dict[bytes, Write] = {}
        self._bytes = 0
        self._count()

    def write(self, key: bytes | str, value: Any, options: tuple[Any, ...]) -> Write:
        """A write as it will be sent."""
        self.stats.writes += 1
        return Write(checks.as_bytes(key), bytes(self._encoder.encode(value)), options)

    def hold(self, write: Write) -> bool:
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
            return (yield Command(self._client, ("GET", name)))
        return self._encoder.decode(write.value) if self._encoder.decode_responses else write.value

    def now_steps(self, words: tuple[Any, ...]) -> Steps[Reply]:
        """Send a command that replaces whatever is held of its key."""
        self.drop(words[1])
        return (yield Command(self._client, words))

    def delete_steps(self, key: bytes | str) -> Steps[Reply]:
        """Delete a key and what is held of it."""
        return self.now_steps(("DEL", checks.as_bytes(key)))

    def flush_steps(self) -> Steps[None]:
        """Send what is held; raises the first error after all were tried."""
        with self._guard:
            self._sending, self._held = self._held, {}
        writes = list(self._sending.values())
        if not writes:
            return
        try:
            replies = yield Batch(tuple(Command(self._client, write.words) for write in writes))
        except BaseException:
            self.stats.failures += 1
            self._settle({write.key: write for write in writes})
            raise
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        self._settle(self._again(writes, replies))
        if errors:
            self.stats.failures += 1
            raise errors[0]

    def _again(self, writes: list[Write], replies: list[Reply]) -> dict[bytes, Write]:
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

    def _settle(self, again: dict[bytes, Write]) -> None:
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


def options_of(ex: int | None, px: int | None, *, keepttl: bool) -> tuple[Any, ...]:
    """The options of SET, as words."""
    words: Iterator[tuple[Any, ...]] = iter(
        (
            ("EX", ex) if ex is not None else (),
            ("PX", px) if px is not None else (),
            ("KEEPTTL",) if keepttl else (),
        )
    )
    return tuple(word for option in words for word in option)
