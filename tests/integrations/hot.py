"""What makes a key hot at once in a test, and how to wait for it."""

import time
from collections.abc import Callable
from typing import Any

# Hot at once: the tests are about what is told and done, not about what is hot.
RULES = [
    {
        "name": "all",
        "match": {"any": True},
        "levels": [{"metric": "ops", "enter_per_s": 5}],
        "min_hot_ms": 0,
        "cooling_ms": 0,
    }
]


def hits(keyheat: Any) -> int:
    """Reads answered from memory so far."""
    return int(keyheat.stats()["local_hits"])


def until_local(keyheat: Any, read: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Read until a read is answered from memory."""
    deadline = time.monotonic() + timeout_s
    while True:
        before = hits(keyheat)
        read()
        if hits(keyheat) > before:
            return
        assert time.monotonic() < deadline, f"not answered from memory: {keyheat.stats()}"
