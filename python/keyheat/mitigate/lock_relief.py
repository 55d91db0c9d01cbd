"""Relief of hot locks: one contender per process and host asks the server, the rest wait in line.

A lock with a thousand waiters costs the server a thousand attempts per `sleep`, all in vain. Here
the waiters of a process stand in a first-come line; its head asks, and of all processes of a host
that share a turn only one head does (`_lock_line.py` says how, and why nobody starves;
`_host_turn.py` how a dead process gives its turn back).

What `LockRelief.lock` returns *is* the library's `Lock`: the same key, token, scripts, errors,
`timeout`, `extend`, `reacquire`, `thread_local`. It differs in two ways. The lock goes to waiters
of one process in their order. A waiter that stands in line until its `blocking_timeout` returns
False without having asked itself: the line's last question, at most one `sleep` ago, was answered for
it too. `blocking=False`, and a `blocking_timeout` of 0, ask the server at once, line or not.

Bound: at most one question per process and `sleep`, timeouts or not; of the processes of a host only
the one with the turn asks, so while it keeps the turn, one per host and `sleep`. One more per release
here (a hand-over, which mostly succeeds). Without a private directory there is no turn.
"""

import asyncio
import hashlib
import importlib
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keyheat.mitigate import _checks as checks
from keyheat.mitigate import _lifetime as lifetime
from keyheat.mitigate._commands import Client, encoder_of, is_asyncio, library_of
from keyheat.mitigate._host_turn import HostTurns
from keyheat.mitigate._lock_line import Ask, Attempt, Contending, Lines, Wait, Waiter

_POLLS_PER_SLEEP: Final = 4
_POLL_MAX_S: Final = 0.025


@dataclass(slots=True)
class LockReliefStats:
    """What the relief has done.

    Attributes:
        asked: Questions sent to the server.
        got: Those that got the lock.
        waited: Calls of `acquire` that stood in line.
        gave_up: Those that ran into their `blocking_timeout`.
        waiting: Contenders in line now.
        host_failures: Times the host's turn could not be used, and the process went on without.
    """

    asked: int = 0
    got: int = 0
    waited: int = 0
    gave_up: int = 0
    waiting: int = 0
    host_failures: int = 0


class LockRelief:
    """Makes locks that stand in line; one object per process is what it is for.

    Args:
        handovers_max: How often in a row a lock may go from one contender of this process to the
            next without other processes being given a chance.
        host_wide: Whether the processes of this host share one turn.
        directory: Where turns are kept; by default a private directory of this user.

    Raises:
        ConfigError: `handovers_max` is below 0.
    """

    def __init__(
        self, *, handovers_max: int = 16, host_wide: bool = True, directory: Path | None = None
    ) -> None:
        checks.whole_at_least("handovers_max", handovers_max, 0)
        self.enabled = True
        self.lines = Lines(handovers_max)
        self._log = checks.OnceLogger("keyheat.mitigate.lock_relief")
        self._stats = LockReliefStats()
        self._turns = HostTurns(directory) if host_wide else None
        if self._turns is not None and not self._turns.is_usable:
            self._log.warning("directory", "no private directory for turns: relief is per process")
            self._stats.host_failures += 1
            self._turns = None
        self._hook = lifetime.in_forked_child(self.lines.clear)

    def lock(self, client: Client, name: bytes | str, **options: Any) -> Any:
        """A lock of the client's library that stands in line.

        Args:
            client: redis-py's or valkey-py's, sync or asyncio, standalone or Cluster.
            name: The lock's key.
            options: What the library's `Lock` takes: `timeout`, `sleep`, `blocking`,
                `blocking_timeout`, `thread_local` …

        Returns:
            An object that is-a `Lock` of that library.
        """
        relieved = _relieved_class(client)(client, name, **options)
        relieved.relief = self
        relieved.what = _server_of(client) + b"\0" + checks.as_bytes(name)
        return relieved

    def stats(self) -> LockReliefStats:
        """Counts since the object was made."""
        self._stats.waiting = self.lines.waiting
        return self._stats

    def attempt(
        self, what: bytes, wake: Callable[[], None], sleep_s: float, timeout_s: float | None
    ) -> Attempt:
        """What one call of `acquire` goes through."""
        self._stats.waited += 1
        return Attempt(
            lines=self.lines,
            what=what,
            waiter=Waiter(wake),
            sleep_s=sleep_s,
            deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
            poll_s=min(sleep_s / _POLLS_PER_SLEEP, _POLL_MAX_S),
            clock=time.monotonic,
            take_turn=self._take_turn,
            give_back=self._give_back,
        )

    def count(self, *, asked: bool = False, got: bool = False, gave_up: bool = False) -> None:
        """Count one event."""
        self._stats.asked += asked
        self._stats.got += got
        self._stats.gave_up += gave_up

    def _take_turn(self, what: bytes) -> int | None:
        if self._turns is None:
            return _NO_TURN
        try:
            return self._turns.try_take(what)
        except OSError as error:
            self._stats.host_failures += 1
            self._log.warning("turn", "the host's turn cannot be used: %s", error.strerror)
            return _NO_TURN

    def _give_back(self, turn: int) -> None:
        if turn != _NO_TURN and self._turns is not None:
            self._turns.give_back(turn)


_NO_TURN: Final = -1


class _Relieved:
    """What both kinds of lock share; mixed in before the library's `Lock`."""

    relief: LockRelief
    what: bytes
    sleep: float
    blocking: bool
    blocking_timeout: float | None
    local: Any
    name: Any

    def _stands_in_line(self, blocking: bool | None, timeout_s: float | None) -> bool:
        blocking = self.blocking if blocking is None else blocking
        timeout_s = self.blocking_timeout if timeout_s is None else timeout_s
        return self.relief.enabled and bool(blocking) and timeout_s != 0

    def _encoded(self, token: Any) -> Any:
        if token is None:
            return None
        client: Client = vars(self).get("redis") or vars(self).get("valkey")
        return encoder_of(client).encode(token)

    def _released(self) -> None:
        self.relief.lines.released(self.what, self.sleep, time.monotonic())


class _SyncRelieved(_Relieved):
    def acquire(
        self,
        sleep: float | None = None,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: Any = None,
    ) -> bool:
        """As the library's `acquire`, in line."""
        if not self._stands_in_line(blocking, blocking_timeout):
            return bool(super().acquire(sleep, blocking, blocking_timeout, token))  # type: ignore[misc]
        timeout_s = self.blocking_timeout if blocking_timeout is None else blocking_timeout
        token = self._encoded(token) or _new_token()
        woken = threading.Event()
        attempt = self.relief.attempt(self.what, woken.set, self.sleep if sleep is None else sleep, timeout_s)
        steps = attempt.contend()
        got = self._run(steps, woken, token)
        if got:
            self.local.token = token
        self.relief.count(got=got, gave_up=not got)
        return got

    def _run(self, steps: Contending, woken: threading.Event, token: bytes) -> bool:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Wait):
                    outcome = woken.wait(step.seconds)
                    woken.clear()
                else:
                    self.relief.count(asked=True)
                    outcome = bool(self.do_acquire(token))  # type: ignore[attr-defined]
                step = steps.send(outcome)
        except StopIteration as end:
            return bool(end.value)
        finally:
            steps.close()

    def do_release(self, expected_token: Any) -> None:
        """As the library's, and the next in line learns of it."""
        try:
            super().do_release(expected_token)  # type: ignore[misc]
        finally:
            self._released()


class _AsyncRelieved(_Relieved):
    async def acquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: Any = None,
    ) -> bool:
        """As the library's `acquire`, in line."""
        if not self._stands_in_line(blocking, blocking_timeout):
            return bool(await super().acquire(blocking, blocking_timeout, token))  # type: ignore[misc]
        timeout_s = self.blocking_timeout if blocking_timeout is None else blocking_timeout
        token = self._encoded(token) or _new_token()
        woken = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(woken.set)

        steps = self.relief.attempt(self.what, wake, self.sleep, timeout_s).contend()
        got = await self._run(steps, woken, token)
        if got:
            self.local.token = token
        self.relief.count(got=got, gave_up=not got)
        return got

    async def _run(self, steps: Contending, woken: asyncio.Event, token: bytes) -> bool:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Ask):
                    self.relief.count(asked=True)
                    outcome = bool(await self.do_acquire(token))  # type: ignore[attr-defined]
                else:
                    outcome = await _wait(woken, step.seconds)
                    woken.clear()
                step = steps.send(outcome)
        except StopIteration as end:
            return bool(end.value)
        finally:
            steps.close()

    async def do_release(self, expected_token: Any) -> None:
        """As the library's, and the next in line learns of it."""
        try:
            await super().do_release(expected_token)  # type: ignore[misc]
        finally:
            self._released()


async def _wait(woken: asyncio.Event, seconds: float | None) -> bool:
    try:
        async with asyncio.timeout(seconds):  # not wait_for, which may swallow a cancellation
            return await woken.wait()
    except TimeoutError:
        return False


def _new_token() -> bytes:
    return uuid.uuid1().hex.encode()


_classes: dict[tuple[str, bool], Any] = {}


def _relieved_class(client: Client) -> Any:
    """The library's `Lock` with the line mixed in; one class per library and kind."""
    library = library_of(client)
    asynchronous = is_asyncio(client)
    key = (library, asynchronous)
    if key not in _classes:
        base = importlib.import_module(f"{library}.asyncio.lock" if asynchronous else f"{library}.lock").Lock
        mixin = _AsyncRelieved if asynchronous else _SyncRelieved
        _classes[key] = type("RelievedLock", (mixin, base), {"__doc__": base.__doc__})
    return _classes[key]


def _server_of(client: Client) -> bytes:
    """What tells servers apart, as far as a client says; the same in every process that has its settings."""
    nodes = getattr(client, "nodes_manager", None)
    if nodes is not None:
        names = sorted(str(name) for name in getattr(nodes, "nodes_cache", {}))
        return hashlib.sha256(",".join(names).encode()).digest()
    pool = getattr(client, "connection_pool", None)
    kwargs: dict[str, Any] = getattr(pool, "connection_kwargs", {})
    parts = [kwargs.get(name) for name in ("host", "port", "path", "db")]
    parts.append(getattr(pool, "service_name", None))
    return repr(parts).encode()
