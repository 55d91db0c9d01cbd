"""Congestion control: a bound on the calls to one source; what is too much is turned back at once.

*Why.* A source that is given more than it can do does less than it could: every call takes longer, callers
time out, and their calls are done for nobody. So a bounded number is let in, a bounded number waits for
a bounded time, and the rest is refused within microseconds. When the source is quick again they go
through again, and rewrite the cache.

*Shape.* A count, and a queue in order of arrival. A slot that is given back is handed to the first in the
queue under the same lock, so no slot is idle while somebody waits and no newcomer overtakes. Waiting is
on a latch: threads and tasks of any event loop share one shedder.

*No slot leaks.* A slot is given back when its context ends, however it ends. A waiter that is cancelled in
the moment it is handed a slot passes it on. A forked child starts with all slots free; one that was held
while forking counts in the parent only.

*Adaptive.* `limit` is a ceiling and the number in force follows the source's latency (`gradient.py`).

Cost: two short locks per call. Bound: at most `limit` calls at once and `queue` waiting, per process.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from keyheat.clock import now_s
from keyheat.errors import ShedError
from keyheat.mitigate._checks import seconds, whole_at_least
from keyheat.mitigate._lifetime import in_forked_child
from keyheat.mitigate.failures import IsFailure, is_node_failure
from keyheat.mitigate.gradient import GradientLimit
from keyheat.mitigate.latch import Latch, WaitFor
from keyheat.mitigate.steps import Steps, drive, drive_async

_log = logging.getLogger("keyheat.mitigate.shedder")


@dataclass(frozen=True, slots=True)
class ShedderStats:
    """What a shedder has seen.

    Attributes:
        limit: Calls that may be under way now.
        in_flight: Calls under way.
        waiting: Callers in the queue.
        admitted: Calls let through since it was made.
        shed: Callers turned back at once, the queue being full.
        timed_out: Callers turned back after waiting in vain.
    """

    limit: int
    in_flight: int
    waiting: int
    admitted: int
    shed: int
    timed_out: int


class Shedder:
    """A bound on concurrent calls, with a bounded queue.

    >>> shedder = Shedder(8, name="orders database")
    >>> with shedder.slot():
    ...     row = "loaded"
    >>> shedder.stats().in_flight
    0

    Set `enabled` to False while running and everything passes, those who wait included.

    Args:
        limit: Calls under way at once; with `adaptive` the most there will be.
        queue: Callers that may wait; 0 to turn back at once.
        queue_timeout_s: Seconds a caller waits at most.
        adaptive: Whether the limit follows the latency of the calls.
        name: Who is protected, for messages.
        clock: Seconds, monotonic.

    Raises:
        ConfigError: A setting is out of range.
    """

    def __init__(  # noqa: PLR0913 - all but the limit by name
        self,
        limit: int,
        *,
        queue: int = 32,
        queue_timeout_s: float = 0.5,
        adaptive: bool = False,
        name: str = "source",
        clock: Callable[[], float] = now_s,
        is_failure: IsFailure = is_node_failure,
    ) -> None:
        whole_at_least("limit", limit, 1)
        whole_at_least("queue", queue, 0)
        self.name = name
        self._limit = limit
        self._queue_max = queue
        self._queue_timeout_s = seconds("queue_timeout_s", queue_timeout_s, is_zero_accepted=True)
        self._is_adaptive = adaptive
        self._clock = clock
        self._is_failure = is_failure
        self._enabled = True
        self._generation = 0
        self.start_empty()
        self._fork_hook = in_forked_child(self.start_empty)

    def start_empty(self) -> None:
        """Free all slots and forget who waits; slots held now count no more when given back."""
        # Re-entrant: a dropped coroutine gives its slot back from the garbage collector, anywhere in here.
        self._lock = threading.RLock()
        self._generation += 1
        self._in_flight = 0
        self._waiting: deque[_Waiter] = deque()
        self._gradient = GradientLimit(self._limit) if self._is_adaptive else None
        self._admitted = self._shed = self._timed_out = 0

    @property
    def enabled(self) -> bool:
        """Whether it turns anybody back; may be changed while running."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        with self._lock:
            self._enabled = value
            self._hand_on()

    @property
    def limit(self) -> int:
        """Calls that may be under way at once, now."""
        return self._gradient.limit if self._gradient is not None else self._limit

    def slot(self) -> "SlotContext":
        """A context that holds a slot; for `with`, and for `async with`.

        Raises:
            ShedError: On entering: the queue is full, or no slot came free in time.
        """
        return SlotContext(self)

    def slot_async(self) -> "SlotContext":
        """The same context, to be entered by `async with`."""
        return SlotContext(self)

    def enter_steps(self) -> Steps["Slot"]:
        """Wait for a slot; whoever gets it must call its `leave`.

        Raises:
            ShedError: The queue is full, or no slot came free in time.
        """
        waiter = self._enter()
        if waiter is None:
            return Slot(self, self._clock(), self._generation)
        try:
            yield WaitFor(waiter.latch, self._queue_timeout_s)
        except BaseException:
            self._give_up(waiter)
            raise
        if not self._has_slot(waiter):
            raise ShedError(
                f"{self.name}: {self.limit} calls are under way and none ended within "
                f"{self._queue_timeout_s:g} s; try again later"
            )
        return Slot(self, self._clock(), waiter.generation)

    def stats(self) -> ShedderStats:
        """What it has seen so far."""
        with self._lock:
            return ShedderStats(
                self.limit,
                self._in_flight,
                len(self._waiting),
                self._admitted,
                self._shed,
                self._timed_out,
            )

    def release(self, slot: "Slot", error: BaseException | None) -> None:
        """Take a slot back; called by the slot."""
        at_s = self._clock()
        with self._lock:
            if slot.generation != self._generation:
                return
            was_cut_short = error is not None and not isinstance(error, Exception)
            if self._gradient is not None and not was_cut_short:
                self._gradient.record(
                    at_s,
                    at_s - slot.began_s,
                    in_flight=self._in_flight,
                    is_failure=error is not None and self._is_failure(error),
                )
            self._in_flight -= 1
            self._hand_on()

    def _enter(self) -> "_Waiter | None":
        """None with a slot taken, else a place in the queue."""
        with self._lock:
            if not self._enabled or (self._in_flight < self.limit and not self._waiting):
                self._in_flight += 1
                self._admitted += 1
                return None
            if len(self._waiting) < self._queue_max:
                waiter = _Waiter(self._generation)
                self._waiting.append(waiter)
                return waiter
            self._shed += 1
        raise ShedError(
            f"{self.name}: {self.limit} calls are under way and {self._queue_max} wait; try again later"
        )

    def _hand_on(self) -> None:
        while self._waiting and (not self._enabled or self._in_flight < self.limit):
            waiter = self._waiting.popleft()
            waiter.has_slot = True
            self._in_flight += 1
            self._admitted += 1
            waiter.latch.set()

    def _has_slot(self, waiter: "_Waiter") -> bool:
        """Whether a slot was handed over; if not, the place in the queue is gone."""
        with self._lock:
            if waiter.has_slot:
                return True
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            self._timed_out += 1
            return False

    def _give_up(self, waiter: "_Waiter") -> None:
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.has_slot and waiter.generation == self._generation:
                self._in_flight -= 1
                self._hand_on()


class _Waiter:
    __slots__ = ("generation", "has_slot", "latch")

    def __init__(self, generation: int) -> None:
        self.latch = Latch()
        self.has_slot = False
        self.generation = generation


class Slot:
    """One of the calls under way; `leave` ends it, once."""

    __slots__ = ("_shedder", "began_s", "generation")

    def __init__(self, shedder: Shedder, began_s: float, generation: int) -> None:
        self._shedder: Shedder | None = shedder
        self.began_s = began_s
        self.generation = generation

    def leave(self, error: BaseException | None = None) -> None:
        """Give the slot back; `error` is what the call ended with."""
        shedder, self._shedder = self._shedder, None
        if shedder is not None:
            shedder.release(self, error)


class SlotContext:
    """A context that holds a slot; see `Shedder.slot`."""

    __slots__ = ("_shedder", "_slot")

    def __init__(self, shedder: Shedder) -> None:
        self._shedder = shedder
        self._slot: Slot | None = None

    def __enter__(self) -> Self:
        self._slot = drive(self._shedder.enter_steps())
        return self

    async def __aenter__(self) -> Self:
        self._slot = await drive_async(self._shedder.enter_steps())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.leave(error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
