"""The last good values of this process, to answer from while the cache node is down; off unless made.

Least recently used first out, bounded in bytes and in age. It is not a cache: nothing is answered from it
while the node answers, and nobody invalidates it but this process's own `forget`. Its staleness is bounded
by `max_age_s` alone, so that is the user's to choose.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from keyheat.clock import now_s
from keyheat.mitigate._checks import seconds, whole_at_least
from keyheat.mitigate._lifetime import in_forked_child

_OVERHEAD_BYTES: Final = 300  # per entry: objects and table, measured by tracemalloc to be under this


class StaleStore:
    """Last good values by key.

    Args:
        max_age_s: Seconds a value may be served after it was last known to be the cache's.
        max_bytes: Keys, values and their overhead together.
        clock: Seconds, monotonic.

    Raises:
        ConfigError: A setting is out of range.
    """

    def __init__(
        self, max_age_s: float, max_bytes: int = 16 * 1024 * 1024, *, clock: Callable[[], float] = now_s
    ) -> None:
        self._max_age_s = seconds("max_age_s", max_age_s)
        whole_at_least("max_bytes", max_bytes, 1024)
        self._max_bytes = max_bytes
        self._clock = clock
        self.start_empty()
        self._fork_hook = in_forked_child(self.start_empty)

    def start_empty(self) -> None:
        """Forget everything; for a forked child."""
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._bytes = 0

    def put(self, key: bytes, raw: bytes) -> None:
        """Remember what the cache holds now."""
        at_s = self._clock()
        with self._lock:
            self._drop(key)
            self._entries[key] = raw, at_s
            self._bytes += _size_bytes(key, raw)
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def get(self, key: bytes) -> bytes | None:
        """What the cache last held, if that is not too long ago."""
        at_s = self._clock()
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            if at_s - found[1] > self._max_age_s:
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return found[0]

    def forget(self, key: bytes) -> None:
        """Remember nothing of this key."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._bytes -= _size_bytes(key, found[0])


def _size_bytes(key: bytes, raw: bytes) -> int:
    return len(key) + len(raw) + _OVERHEAD_BYTES
