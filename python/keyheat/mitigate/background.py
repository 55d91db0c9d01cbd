"""Work that nobody waits for: bounded in number, kept alive while it runs, silent at the end.

Tasks are held strongly (an event loop holds them weakly, and they may vanish half-way) and are cancelled
by `asyncio.run` like any other. A loop closed without that would complain of pending tasks, in a finaliser
nobody can act on; the work is optional by definition, so that complaint is switched off.

Threads are daemons: an interpreter that ends does not wait for them.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine


class TaskKeeper:
    """Starts tasks, and holds them until they are done."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Start a task in the running event loop."""
        task = asyncio.get_running_loop().create_task(work)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the work itself says what is to be said


class Background:
    """Runs at most `limit` pieces of work at once, and refuses the rest.

    Args:
        limit: Threads and tasks at once, per process.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.start_empty()

    def start_empty(self) -> None:
        """Forget what runs; for a forked child."""
        self._lock = threading.RLock()
        self._running = 0
        self._tasks = TaskKeeper()

    def start_thread(self, work: Callable[[], None]) -> bool:
        """Run it in a thread of its own, with the caller's context variables; False if refused."""
        if not self._take():
            return False
        context = contextvars.copy_context()
        try:
            threading.Thread(
                target=context.run, args=(self._run, work), name="keyheat-refresh", daemon=True
            ).start()
        except RuntimeError:  # no thread can be had, or the interpreter is ending
            self._give_back()
            return False
        return True

    def start_task(self, work: Callable[[], Coroutine[object, object, None]]) -> bool:
        """Run it in a task of the running event loop; False if refused."""
        if not self._take():
            return False
        self._tasks.start(self._await(work))
        return True

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            self._give_back()

    async def _await(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        try:
            await work()
        finally:
            self._give_back()

    def _take(self) -> bool:
        with self._lock:
            if self._running >= self._limit:
                return False
            self._running += 1
            return True

    def _give_back(self) -> None:
        with self._lock:
            self._running -= 1
