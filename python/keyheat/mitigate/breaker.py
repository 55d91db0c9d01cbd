"""Circuit breaker of one node or source: what keeps failing is left alone until a probe succeeds.

::

    closed ──too many failed or slow──▶ open ──backoff over──▶ half-open
      ▲                                  ▲                        │  │
      │                                  └──── a probe failed ────┘  │
      └── recovery_s over ── recovering ◀──── enough probes succeeded┘
                                 └── too many failed or slow ──▶ open (longer)

*What it is.* Without it each call to a dead node costs its caller a full timeout, and the callers pile
up until the application is down as well. The breaker answers `CircuitOpenError` at once.

*Closed.* Outcomes are counted over a rolling window of slices; a slice carries its number, a stale one
counts as zero, so nothing is swept. The circuit opens when at least `calls_min` calls ended within
`window_s` and the share that failed reaches `error_rate`, or the share slower than `slow_s` reaches
`slow_rate`. A minimum of calls keeps one failure in a quiet hour from opening it.

*Open.* The pause doubles with each opening in a row, up to `open_max_s`, and is jittered: a fleet that
lost a node together must not come back together.

*Half-open.* At most `probes_at_once` calls pass. A probe that never reports (its thread died) is held to
be lost after `probe_timeout_s`. `probes_needed` successes in a row end it, one failure opens again.

*Recovering.* A node that has just come back has cold caches. The share of calls let through grows in a
straight line from a tenth to all over `recovery_s`; the rest are turned back. It is by count, not by
chance: of n calls at share s, s*n pass. Only when it is over is the backoff forgotten.

Cost: one short lock per call begun and per call ended. Threads and event loops may share one. A forked
child keeps the verdict and forgets the calls under way.

Source: M. Nygard, *Release It!* (2007), "Circuit Breaker"; the rolling window with a minimum of calls and
the slow-call rate as in Resilience4j; the recovering ramp as "slow start" in Envoy and linkerd2.
"""

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

from keyheat.clock import now_s
from keyheat.errors import CircuitOpenError
from keyheat.mitigate._checks import at_least, seconds, whole_at_least, within
from keyheat.mitigate._lifetime import in_forked_child
from keyheat.mitigate.failures import IsFailure, is_node_failure

State = Literal["closed", "open", "half-open", "recovering"]

_log = logging.getLogger("keyheat.mitigate.breaker")
_SLICES: Final = 10
_RECOVERY_FROM: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """When a breaker opens, and how it closes again.

    Attributes:
        window_s: Seconds over which outcomes are counted.
        calls_min: Fewer calls than this within the window never open it.
        error_rate: Share of failed calls (0 to 1) that opens it.
        slow_s: A call that took longer counts as slow, whatever it answered.
        slow_rate: Share of slow calls (0 to 1) that opens it; above 1 slow calls never do.
        open_s: Seconds of the first pause; each further one in a row is twice as long.
        open_max_s: Seconds of the longest pause.
        jitter: Each pause is longer or shorter by up to this share, at random.
        probes_at_once: Calls let through at the same time while half-open.
        probes_needed: Successful probes in a row before calls pass again.
        probe_timeout_s: Seconds after which a probe that never ended no longer counts as under way.
        recovery_s: Seconds until all calls pass again after the probes; 0 for at once.
        is_failure: Says of an exception whether it is the node's failure; all others are answers.

    Raises:
        ConfigError: A value is out of range; the message names it.
    """

    window_s: float = 10.0
    calls_min: int = 20
    error_rate: float = 0.5
    slow_s: float = 1.0
    slow_rate: float = 0.8
    open_s: float = 1.0
    open_max_s: float = 30.0
    jitter: float = 0.2
    probes_at_once: int = 1
    probes_needed: int = 3
    probe_timeout_s: float = 10.0
    recovery_s: float = 5.0
    is_failure: IsFailure = is_node_failure

    def __post_init__(self) -> None:
        for name in ("window_s", "slow_s", "open_s", "open_max_s", "probe_timeout_s"):
            seconds(name, getattr(self, name))
        seconds("recovery_s", self.recovery_s, is_zero_accepted=True)
        at_least("open_max_s", self.open_max_s, self.open_s)
        within("error_rate", self.error_rate, 0.001, 1)
        at_least("slow_rate", self.slow_rate, 0.001)
        within("jitter", self.jitter, 0, 0.9)
        for name in ("calls_min", "probes_at_once", "probes_needed"):
            whole_at_least(name, getattr(self, name), 1)


@dataclass(frozen=True, slots=True)
class BreakerStats:
    """What a breaker has seen.

    Attributes:
        state: Where it is now.
        calls: Calls that ended within the window.
        failures: Of those, failed ones.
        slow: Of those, slow ones.
        retry_after_s: Seconds until the next probe may pass; 0 unless open.
        opened: How often it has opened since it was made.
        turned_back: Calls answered with `CircuitOpenError` since it was made.
    """

    state: State
    calls: int
    failures: int
    slow: int
    retry_after_s: float
    opened: int
    turned_back: int


class _Window:
    """Calls, failures and slow calls over the last slices; a slice with a stale number counts as zero."""

    def __init__(self, window_s: float) -> None:
        self._slice_s = window_s / _SLICES
        self._slices = [[-1, 0, 0, 0] for _ in range(_SLICES)]

    def add(self, at_s: float, *, is_failure: bool, is_slow: bool) -> None:
        number = int(at_s / self._slice_s)
        cell = self._slices[number % _SLICES]
        if cell[0] != number:
            cell[:] = [number, 0, 0, 0]
        cell[1] += 1
        cell[2] += is_failure
        cell[3] += is_slow

    def sums(self, at_s: float) -> tuple[int, int, int]:
        oldest = int(at_s / self._slice_s) - _SLICES
        live = [cell for cell in self._slices if cell[0] > oldest]
        return sum(c[1] for c in live), sum(c[2] for c in live), sum(c[3] for c in live)


class Breaker:
    """A circuit breaker; make one per node or source.

    >>> breaker = Breaker("node 10.0.0.5:6379")
    >>> with breaker.guard():
    ...     answer = "PONG"
    >>> breaker.state
    'closed'

    Set `enabled` to False while running and it lets everything through and counts nothing.

    Args:
        name: Who is guarded, for messages; never a password.
        settings: When it opens and closes.
        clock: Seconds, monotonic.
        chance: Uniform in [0, 1), for the jitter.
    """

    def __init__(
        self,
        name: str,
        settings: BreakerSettings | None = None,
        *,
        clock: Callable[[], float] = now_s,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.enabled = True
        self._settings = settings or BreakerSettings()
        self._clock = clock
        self._chance = chance
        self._state: State = "closed"
        self._until_s = 0.0  # end of the pause
        self._since_s = 0.0  # start of the recovery
        self._in_a_row = 0  # openings without a full recovery between them
        self._generation = 0  # of the state; a late outcome of an older one says nothing
        self._opened = 0
        self._turned_back = 0
        self.start_empty()
        self._fork_hook = in_forked_child(self.start_empty)

    def start_empty(self) -> None:
        """Forget the calls under way and counted; the verdict stays."""
        # Re-entrant: an abandoned guard may be ended by the garbage collector, anywhere in here.
        self._lock = threading.RLock()
        self._window = _Window(self._settings.window_s)
        self._probes: list[float] = []  # when each probe under way began
        self._succeeded = 0
        self._credit = 0.0

    @property
    def state(self) -> State:
        """Where it is now; an open one whose pause is over is half-open."""
        with self._lock:
            self._advance(self._clock())
            return self._state

    def allow(self) -> bool:
        """Whether a call may begin now; if so, `record` must follow when it ended."""
        if not self.enabled:
            return True
        with self._lock:
            return self._admit(self._clock())

    def record(self, ok: bool, seconds: float) -> None:
        """Tell the outcome of a call that `allow` let through.

        Args:
            ok: Whether the node answered.
            seconds: How long the call took.
        """
        if self.enabled:
            with self._lock:
                self._note(ok=ok, seconds=seconds)

    def guard(self) -> "Guard":
        """A context around one call, for `with` and for `async with`.

        Raises:
            CircuitOpenError: On entering, when the call may not begin; `retry_after_s` says when to
                come back.
        """
        return Guard(self)

    def guard_async(self) -> "Guard":
        """The same context, to be entered by `async with`."""
        return Guard(self)

    def acquire(self) -> "Permit":
        """Permission for one call, to be given back by one of its methods.

        Raises:
            CircuitOpenError: The call may not begin.
        """
        if not self.enabled:
            return Permit(None, 0.0, 0)
        with self._lock:
            at_s = self._clock()
            if self._admit(at_s):
                return Permit(self, at_s, self._generation)
            wait_s = self._retry_after_s(at_s)
        raise CircuitOpenError(
            f"{self.name} has been failing: nothing is sent for {wait_s:.2f} s", retry_after_s=wait_s
        )

    def stats(self) -> BreakerStats:
        """What it has seen so far."""
        with self._lock:
            at_s = self._clock()
            self._advance(at_s)
            calls, failures, slow = self._window.sums(at_s)
            wait_s = self._retry_after_s(at_s)
            return BreakerStats(self._state, calls, failures, slow, wait_s, self._opened, self._turned_back)

    def finish(self, permit: "Permit", error: BaseException | None) -> None:
        """Take a permit back; called by the permit."""
        with self._lock:
            if permit.generation != self._generation:
                return
            if error is not None and not isinstance(error, Exception):
                # Cancelled, or the interpreter is ending: this says nothing about the node.
                self._end_probe()
                return
            ok = error is None or not self._settings.is_failure(error)
            self._note(ok=ok, seconds=self._clock() - permit.began_s)

    # ------------------------------------------------------------ under the lock

    def _advance(self, at_s: float) -> None:
        if self._state == "open" and at_s >= self._until_s:
            self._enter("half-open")
        elif self._state == "recovering" and at_s >= self._since_s + self._settings.recovery_s:
            self._in_a_row = 0
            self._enter("closed")

    def _enter(self, state: State) -> None:
        self._state = state
        self._probes.clear()
        self._succeeded = 0
        if state != "closed":  # a call begun while recovering still counts once closed
            self._generation += 1

    def _admit(self, at_s: float) -> bool:
        self._advance(at_s)
        if self._state == "closed" or self._may_probe(at_s) or self._may_recover(at_s):
            return True
        self._turned_back += 1
        return False

    def _may_probe(self, at_s: float) -> bool:
        if self._state != "half-open":
            return False
        lost_before_s = at_s - self._settings.probe_timeout_s
        self._probes = [began_s for began_s in self._probes if began_s > lost_before_s]
        if len(self._probes) >= self._settings.probes_at_once:
            return False
        self._probes.append(at_s)
        return True

    def _may_recover(self, at_s: float) -> bool:
        if self._state != "recovering":
            return False
        self._credit += max(_RECOVERY_FROM, (at_s - self._since_s) / self._settings.recovery_s)
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True

    def _note(self, *, ok: bool, seconds: float) -> None:
        at_s = self._clock()
        is_slow = seconds > self._settings.slow_s
        if self._state == "open":
            return
        if self._state == "half-open":
            self._note_probe(at_s, ok=ok and not is_slow)
            return
        self._window.add(at_s, is_failure=not ok, is_slow=is_slow)
        calls, failures, slow = self._window.sums(at_s)
        too_many = failures >= calls * self._settings.error_rate
        too_slow = slow >= calls * self._settings.slow_rate
        if calls >= self._settings.calls_min and (too_many or too_slow):
            self._open(at_s, f"of {calls} calls {failures} failed and {slow} were slow")

    def _note_probe(self, at_s: float, *, ok: bool) -> None:
        if not self._end_probe():
            return  # a late outcome from before the pause
        if not ok:
            self._open(at_s, "a probe failed")
            return
        self._succeeded += 1
        if self._succeeded < self._settings.probes_needed:
            return
        self._window = _Window(self._settings.window_s)
        self._since_s, self._credit = at_s, 0.0
        self._enter("recovering")
        self._advance(at_s)
        _log.warning("breaker %s: the node answers again", self.name)

    def _end_probe(self) -> bool:
        if not self._probes:
            return False
        self._probes.pop()
        return True

    def _open(self, at_s: float, why: str) -> None:
        settings = self._settings
        pause_s = min(settings.open_max_s, settings.open_s * 2.0 ** min(self._in_a_row, 32))
        pause_s *= 1.0 + settings.jitter * (2.0 * self._chance() - 1.0)
        self._until_s = at_s + pause_s
        self._in_a_row += 1
        self._opened += 1
        self._enter("open")
        _log.warning("breaker %s opens for %.2f s: %s", self.name, pause_s, why)

    def _retry_after_s(self, at_s: float) -> float:
        return max(0.0, self._until_s - at_s) if self._state == "open" else 0.0


class Permit:
    """Permission for one call; ended once, by `done` or `failed`."""

    __slots__ = ("_breaker", "began_s", "generation")

    def __init__(self, breaker: Breaker | None, began_s: float, generation: int) -> None:
        self._breaker = breaker
        self.began_s = began_s
        self.generation = generation

    def done(self) -> None:
        """The call was answered."""
        self._end(None)

    def failed(self, error: BaseException) -> None:
        """The call ended with this error; whether that is a failure is a setting."""
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.finish(self, error)


class Guard:
    """A context around one call; see `Breaker.guard`."""

    __slots__ = ("_breaker", "_permit")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._permit: Permit | None = None

    def __enter__(self) -> Self:
        self._permit = self._breaker.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            permit.done() if error is None else permit.failed(error)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
