"""The line in front of a hot lock: who in this process may ask the server, and when. No I/O.

Only the head of a line asks. It asks as redis-py's `Lock` would, once per `sleep`, and only while it
has the host's turn, so a lock costs the server one attempt per host and `sleep` however many wait.

A release in this process is the one moment at which waiting is wasteful: the lock is free now, and
the head knows. It may then ask at once, without the host's turn (a *hand-over*). Unbounded, that
would starve every other process, so after `handovers_max` in a row the head stands back for one
whole `sleep`: every other contender, here and on other hosts, asks once in that time.

A question the server answered with "held" counts for the whole line, for one `sleep`: a new head waits
until then, for a release here or for the next question to be due, and one whose deadline comes first
leaves without having asked. So a line asks once per `sleep` also while the deadlines of its waiters
come one after another, or all at once. Whoever stands alone asks as often as redis-py's `Lock` would.

A waiter leaves in a `finally`: cancelled, timed out or interrupted, it never strands the others.
While somebody of this process holds the lock, the head leaves the host's turn to other processes
until the release, or one `sleep` (a holder may have died, or handed its lock to another process).
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

_IDLE_LINES_MAX: Final = 4096
_NEVER: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the server for the lock; the outcome is whether it was got."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait so long or until woken; None waits for being woken."""

    seconds: float | None


Contending: TypeAlias = Generator[Ask | Wait, bool, bool]


class Waiter:
    """One contender; `wake` must be callable from any thread."""

    __slots__ = ("wake",)

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake


@dataclass(slots=True)
class Line:
    """Everybody of this process who wants one lock."""

    waiters: deque[Waiter] = field(default_factory=deque)
    is_held_here: bool = False
    has_handover: bool = False
    handovers: int = 0
    not_before_s: float = 0.0
    refused_s: float = _NEVER  # when the server last said that the lock is held


class Lines:
    """All lines of a process, thread-safe; those nobody stands in are bounded.

    Args:
        handovers_max: Hand-overs in a row before the head stands back.
    """

    def __init__(self, handovers_max: int) -> None:
        self._handovers_max = handovers_max
        self.clear()

    def clear(self) -> None:
        """Nobody waits: a forked child, whose waiters are the parent's."""
        self._guard = threading.Lock()
        self._lines: OrderedDict[bytes, Line] = OrderedDict()

    def join(self, what: bytes, waiter: Waiter) -> Line:
        """Stand at the end."""
        with self._guard:
            line = self._lines.setdefault(what, Line())
            self._lines.move_to_end(what)
            line.waiters.append(waiter)
            return line

    def leave(self, what: bytes, line: Line, waiter: Waiter) -> None:
        """Stand there no more; the next is woken if this was the head."""
        with self._guard:
            if waiter not in line.waiters:
                return  # forked meanwhile
            was_head = line.waiters[0] is waiter
            line.waiters.remove(waiter)
            head = line.waiters[0] if line.waiters else None
            self._tidy(what, line)
        if was_head and head is not None:
            head.wake()

    def acquired(self, line: Line) -> None:
        """The head has got the lock."""
        with self._guard:
            line.is_held_here = True
            line.refused_s = _NEVER

    def refused(self, line: Line, now_s: float) -> None:
        """The head has asked, and the lock was held."""
        with self._guard:
            line.refused_s = now_s

    def released(self, what: bytes, sleep_s: float, now_s: float) -> None:
        """Somebody of this process has released the lock."""
        with self._guard:
            line = self._lines.get(what)
            if line is None:
                return
            line.is_held_here = False
            head = line.waiters[0] if line.waiters else None
            if head is None:
                line.handovers = 0
            elif line.handovers < self._handovers_max:
                line.handovers += 1
                line.has_handover = True
            else:
                line.handovers = 0
                line.not_before_s = now_s + sleep_s
            self._tidy(what, line)
        if head is not None:
            head.wake()

    def take_handover(self, line: Line) -> bool:
        """Whether the head may ask at once, because the lock was released here just now."""
        with self._guard:
            taken, line.has_handover = line.has_handover, False
            return taken

    @property
    def waiting(self) -> int:
        """How many stand in all lines together."""
        with self._guard:
            return sum(len(line.waiters) for line in self._lines.values())

    def _tidy(self, what: bytes, line: Line) -> None:
        if not line.waiters:
            line.has_handover = False
            line.refused_s = _NEVER
            if not line.is_held_here:
                self._lines.pop(what, None)
        while len(self._lines) > _IDLE_LINES_MAX:
            oldest = next((name for name, each in self._lines.items() if not each.waiters), None)
            if oldest is None:
                return
            del self._lines[oldest]


@dataclass(slots=True)
class Attempt:
    """One call of `acquire`, from joining the line to leaving it.

    Attributes:
        what: Names server and lock.
        sleep_s: Seconds between two questions, as the lock's `sleep`.
        deadline_s: On `clock`; None waits without end.
        poll_s: Seconds between two looks at the host's turn.
        take_turn: Takes the host's turn if it is free.
        give_back: Gives it back.
    """

    lines: Lines
    what: bytes
    waiter: Waiter
    sleep_s: float
    deadline_s: float | None
    poll_s: float
    clock: Callable[[], float]
    take_turn: Callable[[bytes], int | None]
    give_back: Callable[[int], None]
    _turn: int | None = None

    def contend(self) -> Contending:
        """The whole of it.

        Returns:
            Whether the lock was got before the deadline.
        """
        line = self.lines.join(self.what, self.waiter)
        try:
            while line.waiters[0] is not self.waiter:
                if self._is_over(0.0):
                    return False
                yield Wait(self._until_deadline(None))
            return (yield from self._as_head(line))
        finally:
            self._drop_turn()
            self.lines.leave(self.what, line, self.waiter)

    def _as_head(self, line: Line) -> Contending:
        if line.is_held_here and not line.has_handover:
            yield Wait(self._until_deadline(self.sleep_s))
        if not (yield from self._is_due(line)):
            return False
        while True:
            if not (yield from self._may_ask(line)):
                return False
            if (yield Ask()):
                self.lines.acquired(line)
                return True
            self.lines.refused(line, self.clock())
            if self._is_over(self.sleep_s):
                return False
            yield Wait(self.sleep_s)

    def _is_due(self, line: Line) -> Contending:
        """Wait until what an earlier head was told is a `sleep` old; False if the deadline comes first."""
        while not line.has_handover and (ahead_s := line.refused_s + self.sleep_s - self.clock()) > 0:
            if self._is_over(0.0):
                return False
            yield Wait(self._until_deadline(ahead_s))
        return True

    def _may_ask(self, line: Line) -> Contending:
        """Wait for the right to ask; False if the deadline comes first."""
        while True:
            if self.lines.take_handover(line):
                return True
            back_s = line.not_before_s - self.clock()
            if back_s > 0:
                self._drop_turn()
                wait_s = back_s
            else:
                self._turn = self._turn if self._turn is not None else self.take_turn(self.what)
                if self._turn is not None:
                    return True
                wait_s = self.poll_s
            if self._is_over(0.0):
                return False
            yield Wait(self._until_deadline(wait_s))

    def _drop_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self.give_back(turn)

    def _is_over(self, ahead_s: float) -> bool:
        return self.deadline_s is not None and self.clock() + ahead_s > self.deadline_s

    def _until_deadline(self, seconds: float | None) -> float | None:
        if self.deadline_s is None:
            return seconds
        left = max(0.0, self.deadline_s - self.clock())
        return left if seconds is None else min(seconds, left)
