"""In-process lock per key: of many callers at once one runs the function, the others get its result.

*Shape.* A table of loads under way. The first caller of a key enters one and leads; whoever comes while it
is there waits for its latch, a thread or a task of any event loop. The entry is removed when the load
ends, so nothing is kept per key that nobody loads. No lock is held while a function runs.

*How long a caller waits.* `wait_s`, counted from when the load began and not from when the caller came: a
load that takes longer is held to be stuck. Nobody waits longer than `wait_s` in all, take-overs included.
Then, by `on_timeout`:

- `stale`: the caller's own `stale` value; without one, as `raise`.
- `raise`: `WaitTimeoutError`.
- `load`: the caller runs the function itself, under the limit of `shedder` if there is one. The first to
  do so takes the stuck load's place, so callers that come later wait for it and not for the stuck one.
  Without a shedder, all who waited load at once: give one where the source cannot take that.

*A load that fails* fails for everybody who waited for it; the next caller tries anew. So a failing source
is asked once per load and not once per caller, and nobody waits for several failures in series. Each gets
an error object of his own (a copy, whose cause is the original), for tracebacks grow where they are raised.

*A load that is cut short* (its task cancelled, its thread interrupted) has failed for nobody: one of the
waiters takes over, the others wait for him. A leader that cannot even say so, its thread dead or its event
loop closed, is noticed by the re-check: n waiters each look every n x `recheck_s`, so that somebody looks
every `recheck_s`.

*A caller that would wait for itself* runs the function instead: one that comes, directly or through tasks
it started, from within the load of the same key; and a blocking call made on the event loop's own thread
for a key that a task of that loop is loading.

*Bounded staleness*: with `max_age_s` a caller only joins a load that began at most that long before it
asked, and starts a newer one otherwise. `forget` makes the load under way unjoinable, for a writer.

Cost: two short locks per caller. A forked child starts with an empty table.
"""

import asyncio
import contextvars
import copy
import threading
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeVar, cast

from keyheat.clock import now_s
from keyheat.errors import WaitTimeoutError
from keyheat.mitigate._checks import one_of, seconds
from keyheat.mitigate._lifetime import in_forked_child
from keyheat.mitigate.latch import Latch, WaitFor
from keyheat.mitigate.shedder import Shedder
from keyheat.mitigate.steps import Call, Steps, drive, drive_async

T = TypeVar("T")
OnTimeout = Literal["load", "raise", "stale"]


class _Missing(Enum):
    MISSING = "missing"


_MISSING: Final = _Missing.MISSING


@dataclass(frozen=True, slots=True)
class CoalescerStats:
    """What a coalescer has seen.

    Attributes:
        in_flight: Keys being loaded now.
        waiting: Callers waiting for them now.
        led: Loads run.
        joined: Callers that got another caller's result or error.
        timed_out: Callers whose waiting ended first.
        taken_over: Loads that ended without a result, so that a waiter had to take over.
    """

    in_flight: int
    waiting: int
    led: int
    joined: int
    timed_out: int
    taken_over: int


class _Flight:
    """One load under way, and what came of it."""

    __slots__ = ("error", "has_ended", "key", "latch", "loop", "started_s", "thread", "value", "waiting")

    def __init__(self, key: Hashable, started_s: float) -> None:
        self.key = key
        self.started_s = started_s
        self.latch = Latch()
        self.thread = threading.current_thread()
        self.loop = _running_loop()
        self.waiting = 0
        self.has_ended = False  # with a value or an error; a latch set without is a load cut short
        self.value: object = None
        self.error: Exception | None = None

    @property
    def is_lost(self) -> bool:
        """Whether its leader can never end it."""
        return not self.thread.is_alive() or (self.loop is not None and self.loop.is_closed())


# The loads this thread or task, or whoever started it, is leading.
_leading: contextvars.ContextVar[frozenset[_Flight]] = contextvars.ContextVar(
    "keyheat_leading", default=frozenset()
)


class _MayWait:
    """The step that asks whether waiting for a load is safe: not if it blocks the loop that is to load."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop

    def run(self) -> bool:
        return self._loop is None or self._loop is not _running_loop()

    async def run_async(self) -> bool:
        return True


class Coalescer:
    """Runs a function once for all who ask for the same key at the same time.

    >>> coalescer = Coalescer()
    >>> coalescer.run(b"item:1", lambda: "loaded")
    'loaded'

    Set `enabled` to False while running and every caller runs its own function.

    Args:
        wait_s: Seconds after the start of a load until those who wait for it stop waiting.
        recheck_s: Seconds until somebody who waits looks whether the leader is still there.
        on_timeout: What a caller does then: `load`, `raise` or `stale`; see the module.
        shedder: Limits the loads of those who stopped waiting.
        clock: Seconds, monotonic.

    Raises:
        ConfigError: A setting is out of range.
    """

    def __init__(
        self,
        wait_s: float = 0.050,
        recheck_s: float = 0.005,
        on_timeout: OnTimeout = "load",
        *,
        shedder: Shedder | None = None,
        clock: Callable[[], float] = now_s,
    ) -> None:
        self._wait_s = seconds("wait_s", wait_s)
        self._recheck_s = seconds("recheck_s", recheck_s)
        one_of("on_timeout", on_timeout, ("load", "raise", "stale"))
        self._on_timeout = on_timeout
        self._shedder = shedder
        self._clock = clock
        self.enabled = True
        self.start_empty()
        self._fork_hook = in_forked_child(self.start_empty)

    def start_empty(self) -> None:
        """Forget all loads under way."""
        # Re-entrant: a dropped coroutine ends its load from the garbage collector, anywhere in here.
        self._lock = threading.RLock()
        self._flights: dict[Hashable, _Flight] = {}
        self._led = self._joined = self._timed_out = self._taken_over = 0

    def run(
        self,
        key: Hashable,
        function: Callable[[], T],
        *,
        stale: T | _Missing = _MISSING,
        max_age_s: float | None = None,
    ) -> T:
        """The result of `function`, run by this thread or by another caller of the same key.

        Args:
            key: What is loaded; `b"a"` and `"a"` are different keys.
            function: Loads it.
            stale: What to return with `on_timeout="stale"`.
            max_age_s: Join only a load that began at most this long ago; None for any.

        Raises:
            WaitTimeoutError: The wait is over and there is nothing to return.
            ShedError: The wait is over and the shedder turned this caller back.
        """
        return drive(self.steps(key, lambda: _called(function), stale=stale, max_age_s=max_age_s))

    async def run_async(
        self,
        key: Hashable,
        function: Callable[[], Awaitable[T]],
        *,
        stale: T | _Missing = _MISSING,
        max_age_s: float | None = None,
    ) -> T:
        """The same for a task; see `run`."""
        return await drive_async(
            self.steps(key, lambda: _awaited(function), stale=stale, max_age_s=max_age_s)
        )

    def forget(self, key: Hashable) -> None:
        """Let nobody join the load of `key` that is under way: those who ask from now on start anew."""
        with self._lock:
            self._flights.pop(key, None)

    def is_loading(self, key: Hashable) -> bool:
        """Whether a load of the key is under way."""
        with self._lock:
            return key in self._flights

    def stats(self) -> CoalescerStats:
        """What it has seen so far."""
        with self._lock:
            waiting = sum(flight.waiting for flight in self._flights.values())
            return CoalescerStats(
                len(self._flights), waiting, self._led, self._joined, self._timed_out, self._taken_over
            )

    def steps(
        self,
        key: Hashable,
        work: Callable[[], Steps[T]],
        *,
        stale: T | _Missing = _MISSING,
        max_age_s: float | None = None,
    ) -> Steps[T]:
        """The algorithm; see `run` for the arguments."""
        if not self.enabled:
            return (yield from work())
        asked_s = self._clock()
        while True:
            flight, is_leader = self._join(key, asked_s, max_age_s)
            if is_leader:
                return (yield from self._lead(flight, work))
            if flight in _leading.get() or not (yield _MayWait(flight.loop)):
                return (yield from work())
            yield from self._await(flight, min(flight.started_s, asked_s) + self._wait_s)
            if not flight.latch.is_set:
                return (yield from self._stop_waiting(flight, work, stale))
            if flight.has_ended:
                with self._lock:
                    self._joined += 1
                if flight.error is not None:
                    raise _copied(flight.error)
                return cast("T", flight.value)

    def _join(self, key: Hashable, asked_s: float, max_age_s: float | None) -> tuple[_Flight, bool]:
        with self._lock:
            flight = self._flights.get(key)
            is_young = max_age_s is None or (flight is not None and flight.started_s >= asked_s - max_age_s)
            if flight is not None and is_young:
                return flight, False
            return self._enter(key), True

    def _enter(self, key: Hashable) -> _Flight:
        flight = _Flight(key, self._clock())
        self._flights[key] = flight
        self._led += 1
        return flight

    def _lead(self, flight: _Flight, work: Callable[[], Steps[T]]) -> Steps[T]:
        outside = _leading.get()
        _leading.set(outside | {flight})
        try:
            value = yield from work()
        except Exception as error:
            flight.error, flight.has_ended = error, True
            raise
        else:
            flight.value, flight.has_ended = value, True
            return value
        finally:
            self._end(flight)
            if flight in _leading.get():  # else the garbage collector runs this, in another's context
                _leading.set(outside)

    def _end(self, flight: _Flight) -> None:
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            self._taken_over += not flight.has_ended and flight.waiting > 0
        flight.latch.set()

    def _await(self, flight: _Flight, until_s: float) -> Steps[None]:
        with self._lock:
            flight.waiting += 1
        try:
            while not flight.latch.is_set and (left_s := until_s - self._clock()) > 0:
                has_ended = yield WaitFor(flight.latch, min(left_s, self._recheck_s * flight.waiting))
                if not has_ended and flight.is_lost:
                    self._end(flight)
        finally:
            with self._lock:
                flight.waiting -= 1

    def _stop_waiting(self, flight: _Flight, work: Callable[[], Steps[T]], stale: T | _Missing) -> Steps[T]:
        with self._lock:
            self._timed_out += 1
        if self._on_timeout == "load":
            return (yield from self._load_alone(flight, work))
        if self._on_timeout == "stale" and not isinstance(stale, _Missing):
            return stale
        raise WaitTimeoutError(
            f"another caller loads this key and did not end within {self._wait_s:g} s; try again later"
        )

    def _load_alone(self, stuck: _Flight, work: Callable[[], Steps[T]]) -> Steps[T]:
        slot = (yield from self._shedder.enter_steps()) if self._shedder is not None else None
        try:
            with self._lock:
                is_first = self._flights.get(stuck.key) in (stuck, None)
                flight = self._enter(stuck.key) if is_first else None
            value = yield from (self._lead(flight, work) if flight is not None else work())
        except BaseException as error:
            if slot is not None:
                slot.leave(error)
            raise
        if slot is not None:
            slot.leave()
        return value


def _called(function: Callable[[], T]) -> Steps[T]:
    value = yield Call(function)
    return cast("T", value)


def _awaited(function: Callable[[], Awaitable[T]]) -> Steps[T]:
    value = yield Call(function)
    return cast("T", value)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _copied(error: Exception) -> Exception:
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001 - a class that cannot be made again from its arguments
        return error
    if type(twin) is not type(error):
        return error
    twin.__cause__ = error
    return twin
