"""The clock of every time keyheat compares across processes.

CLOCK_BOOTTIME counts the time the machine was suspended, so a value that went stale while a laptop
slept is seen as stale. It is one clock for all processes of a machine, and the clock of the native
module (`since_ns` and `first_local_hit_ns` of the hot set). Where a system lacks it, the monotonic
clock stands in.
"""

import time

_CLOCK_ID: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now_ns() -> int:
    """Nanoseconds since boot, suspended time included."""
    return time.clock_gettime_ns(_CLOCK_ID)


def now_s() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime_ns(_CLOCK_ID) / 1e9
