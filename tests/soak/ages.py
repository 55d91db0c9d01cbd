"""How old is what is read through the proxy: a writer that numbers its writes at the servers, and readers.

The age of a read is its start minus the moment at which the first newer write had been acknowledged. Writes
that the servers lost in a failover are taken out when all is over (`survivors`): no reader could see them.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.soak.wire import Refused, Wire, take_turns

# Ages below this part of the bound are not kept one by one.
_KEPT = 0.01


@dataclass
class Direct:
    """Writes 1, 2, 3 … to `key`, to whoever is its primary; `log` gets each in the same transaction."""

    primary: Callable[[], str | None]
    key: str
    per_s: float = 60.0
    log: str | None = None
    # Longer than any server is stopped that comes back: what was given up may yet be carried out, after a
    # write that followed it.
    patience_s: float = 10.0
    acked_ns: dict[int, int] = field(default_factory=dict)
    attempted: int = 0
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin."""
        self._over = threading.Event()
        self._at: str | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        wire: Wire | None = None
        while not self._over.wait(1 / self.per_s):
            self.attempted += 1
            try:
                self._at = self._at or self.primary()
                if self._at is None:
                    continue
                wire = wire or Wire(self._at, timeout_s=self.patience_s)
                wire = self._write(wire)
            except (OSError, EOFError):
                if wire is not None:
                    wire.close()
                wire = self._at = None
        if wire is not None:
            wire.close()

    def _write(self, wire: Wire) -> Wire | None:
        number = self.attempted
        reply = self._ask(wire, number)
        if not isinstance(reply, Refused):
            self.acked_ns[number] = now_ns()
            return wire
        kind, *rest = reply.split(" ")
        if kind == "ASK":
            with Wire(rest[1], timeout_s=self.patience_s) as other:
                other.send(("ASKING",), ("SET", self.key, number))
                other.reply()
                if not isinstance(other.reply(), Refused):
                    self.acked_ns[number] = now_ns()
            return wire
        wire.close()
        self._at = rest[1] if kind == "MOVED" else None
        return None

    def _ask(self, wire: Wire, number: int) -> object:
        if self.log is None:
            return wire.ask("SET", self.key, number)
        wire.send(("MULTI",), ("SET", self.key, number), ("RPUSH", self.log, number), ("EXEC",))
        replies = [wire.reply() for _ in range(4)]
        return next((each for each in replies if isinstance(each, Refused)), replies[-1])


@dataclass
class Reader:
    """Reads `direct.key` through the proxy as fast as it can, and keeps what was old."""

    address: str
    direct: Direct
    bound_ms: float
    pause_s: float = 0.0
    reads: int = 0
    errors: int = 0
    old: list[tuple[int, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; a reader that does not end says so."""
        self._over.set()
        self._thread.join(30)
        if self._thread.is_alive():
            self.wrong.append("a reader hangs")

    def _run(self) -> None:
        def failed(_: Exception) -> None:
            self.errors += 1

        take_turns(self.address, self._over, self._read, failed)

    def _read(self, wire: Wire) -> bool:
        started = now_ns()
        reply = wire.ask("GET", self.direct.key)
        if isinstance(reply, Refused):
            self.errors += 1
            time.sleep(0.005)
            return True
        self.reads += 1
        number = 0
        with contextlib.suppress(TypeError, ValueError):
            number = int(reply)
        if number > self.direct.attempted and not self.wrong:
            self.wrong.append(f"read {reply!r}, which nobody has written yet")
        newer = next_acked(self.direct.acked_ns, number, self.direct.attempted)
        if newer is not None and started - newer > _KEPT * self.bound_ms * 1e6:
            self.old.append((started, number))
        if self.pause_s:
            time.sleep(self.pause_s)
        return True


def oldest_ms(direct: Direct, readers: list[Reader], survivors: set[int] | None = None) -> float:
    """The age of the oldest value that was read, in milliseconds; only `survivors` make a value old."""
    acked = direct.acked_ns
    if survivors is not None:
        acked = {number: at for number, at in acked.items() if number in survivors}
    worst = 0
    for reader in readers:
        for started, number in reader.old:
            newer = next_acked(acked, number, direct.attempted)
            if newer is not None:
                worst = max(worst, started - newer)
    return worst / 1e6


def next_acked(acked: dict[int, int], number: int, last: int) -> int | None:
    """When the first write after `number` was acknowledged."""
    for later in range(number + 1, last + 1):
        if (at := acked.get(later)) is not None:
            return at
    return None


def now_ns() -> int:
    """One clock for writer and readers, which goes on while the machine is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
