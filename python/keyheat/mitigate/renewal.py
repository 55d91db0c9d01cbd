"""Keeps leases alive while their loaders run: one daemon thread for blocking clients, timers for asyncio.

A load that ends before the first renewal is due costs no command. One thread renews all leases of a
`Lease` in turn: a node that does not answer delays the renewal of the others, at worst until they expire
and the key is loaded twice; the fill is fenced, so nothing worse.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final

from keyheat.mitigate.background import TaskKeeper
from keyheat.mitigate.steps import Steps, drive, drive_async

_IDLE_S: Final = 5.0


class Renewal:
    """One lease being kept alive, every `every_s` until `end`, for at most `max_s`."""

    def __init__(self, renew: Callable[[], Steps[bool]], every_s: float, max_s: float) -> None:
        self._renew = renew
        self.every_s = every_s
        self._until_s = time.monotonic() + max_s
        self._has_ended = False

    def end(self) -> None:
        """Renew no more."""
        self._has_ended = True

    @property
    def is_wanted(self) -> bool:
        """Whether the holder is still loading, and within its time."""
        return not self._has_ended and time.monotonic() < self._until_s

    def steps(self) -> Steps[None]:
        """Renew once; ends by itself when the lease is lost. A node that fails is tried again later."""
        try:
            is_ours = yield from self._renew()
        except Exception:  # noqa: BLE001 - the load goes on; the fill is refused if the lease is lost
            return
        if not is_ours:
            self.end()


class ThreadRenewals:
    """Renews from a daemon thread that lives while there is something to renew."""

    def __init__(self) -> None:
        self.start_empty()

    def start_empty(self) -> None:
        """Forget all renewals; for a forked child."""
        self._condition = threading.Condition()
        self._due: dict[Renewal, float] = {}
        self._thread: threading.Thread | None = None

    def begin(self, renewal: Renewal) -> None:
        """Keep a lease alive from now on."""
        with self._condition:
            self._due[renewal] = time.monotonic() + renewal.every_s
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="keyheat-renewals", daemon=True)
                self._thread.start()
            else:
                self._condition.notify()

    def _run(self) -> None:
        while (renewal := self._next()) is not None:
            drive(renewal.steps())
            with self._condition:
                if renewal.is_wanted:
                    self._due[renewal] = time.monotonic() + renewal.every_s

    def _next(self) -> Renewal | None:
        """The next one that is due, waiting for it; None when there has been none for a while."""
        idle_until_s = time.monotonic() + _IDLE_S
        with self._condition:
            while True:
                self._due = {each: due_s for each, due_s in self._due.items() if each.is_wanted}
                at_s = time.monotonic()
                renewal = min(self._due, key=self._due.__getitem__, default=None)
                wait_s = (idle_until_s if renewal is None else self._due[renewal]) - at_s
                if wait_s > 0:
                    self._condition.wait(wait_s)
                    continue
                if renewal is None:
                    self._thread = None
                else:
                    del self._due[renewal]
                return renewal


class TaskRenewals:
    """Renews by timers of the running event loop."""

    def __init__(self) -> None:
        self._tasks = TaskKeeper()

    def start_empty(self) -> None:
        """Forget all renewals; for a forked child."""
        self._tasks = TaskKeeper()

    def begin(self, renewal: Renewal) -> None:
        """Keep a lease alive from now on."""
        asyncio.get_running_loop().call_later(renewal.every_s, self._fire, renewal)

    def _fire(self, renewal: Renewal) -> None:
        if renewal.is_wanted:
            self._tasks.start(self._renew(renewal))

    async def _renew(self, renewal: Renewal) -> None:
        await drive_async(renewal.steps())
        self.begin(renewal)
