"""Many callers at once, as threads or as tasks: the one suite both have to pass."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WAYS = ("threads", "tasks")


async def crowd(way: str, count: int, call: Callable[[], Any]) -> list[Any]:
    """Call it `count` times at once; results and errors in order."""
    if way == "tasks":
        return await asyncio.gather(*(call() for _ in range(count)), return_exceptions=True)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(count) as pool:
        waiting = [loop.run_in_executor(pool, call) for _ in range(count)]
        return await asyncio.gather(*waiting, return_exceptions=True)


class Source:
    """Something slow to load from, that counts its calls and can fail."""

    def __init__(self, way: str, seconds: float = 0.1, value: Any = b"loaded") -> None:
        self.way = way
        self.seconds = seconds
        self.value = value
        self.error: Exception | None = None
        self.until: Callable[[], bool] = lambda: True  # a load does not end before
        self.calls = 0
        self.at_once = 0
        self.at_once_max = 0

    @property
    def load(self) -> Callable[[], Any]:
        """The function to load with, of the kind the way needs."""
        return self._load_async if self.way == "tasks" else self._load

    def _load(self) -> Any:
        self._begin()
        time.sleep(self.seconds)
        while not self.until():
            time.sleep(0.002)
        return self._end()

    async def _load_async(self) -> Any:
        self._begin()
        try:
            await asyncio.sleep(self.seconds)
            while not self.until():  # noqa: ASYNC110 - threads make it so
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            self.at_once -= 1
            raise
        return self._end()

    def _begin(self) -> None:
        self.calls += 1
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)

    def _end(self) -> Any:
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        return self.value


async def soon(is_so: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {timeout_s:g} s"
        await asyncio.sleep(0.005)
