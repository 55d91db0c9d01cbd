"""A limit on concurrent calls that follows the latency of what is called; pure, time is an argument.

Calls are summed up over windows (`_WINDOW_S`, and at least `_CALLS_MIN` calls). At the end of each,

    gradient  = clamp(tolerance * baseline / mean, 0.5, 1)      at most 0.7 if a tenth of them failed
    wanted    = limit * gradient + sqrt(limit)                  the root is the queue allowed for;
                                                                none if a tenth failed
    limit     = limit + smoothing * (wanted - limit)            within limit_min and limit_max

`baseline` is the latency without a queue: it follows a faster window at once and a slower one by a
hundredth per window, so a source that became slower for good is accepted in the end. As long as the mean
is within `tolerance` times the baseline the gradient is 1, and the limit grows by a fraction of its root:
recovery is gradual. A limit that was not used (at most half of it at the peak) is not raised: there is
no evidence for it.

Why this one: the source's capacity need not be known, as it must for a fixed limit, and unlike with
additive increase and multiplicative decrease (Chiu and Jain 1989) no latency has to be called bad
beforehand. Cost: a few additions per call. It cannot tell a slow query from a slow source: mixed costs
want a higher tolerance, or a limiter for each kind.

Source: Netflix concurrency-limits, `Gradient2Limit` ("Performance Under Load", 2018), which goes back to
TCP Vegas (Brakmo and Peterson 1995). Departures: the baseline is reset downwards at once instead of being
averaged, failures lower the limit too, and the limit starts at its ceiling.
"""

import math
from typing import Final

_WINDOW_S: Final = 0.1
_CALLS_MIN: Final = 10
_DRIFT: Final = 0.01
_SMOOTHING: Final = 0.2
_GRADIENT_MIN: Final = 0.5
_GRADIENT_FAILED: Final = 0.7


class GradientLimit:
    """The adaptive limit.

    Args:
        limit_max: The ceiling, and where it starts.
        limit_min: The floor.
        tolerance: How many times the baseline the mean latency may be before the limit falls.
    """

    def __init__(self, limit_max: int, *, limit_min: int = 1, tolerance: float = 2.0) -> None:
        self._max = float(limit_max)
        self._min = float(limit_min)
        self._tolerance = tolerance
        self._limit = self._max
        self._baseline_s = math.inf
        self._window_from_s = -math.inf
        self._calls = 0
        self._failures = 0
        self._sum_s = 0.0
        self._peak = 0

    @property
    def limit(self) -> int:
        """Calls that may be under way at once, at least 1."""
        return max(1, int(self._limit))

    def record(self, at_s: float, seconds: float, *, in_flight: int, is_failure: bool) -> None:
        """Take in a call that ended.

        Args:
            at_s: Now, in seconds of a monotonic clock.
            seconds: How long the call took.
            in_flight: Calls under way when it ended, itself included.
            is_failure: Whether it failed for want of capacity: a timeout, a lost connection.
        """
        if self._calls == 0:
            self._window_from_s = at_s
        self._calls += 1
        self._sum_s += seconds
        self._failures += is_failure
        self._peak = max(self._peak, in_flight)
        if self._calls >= _CALLS_MIN and at_s - self._window_from_s >= _WINDOW_S:
            self._close()
            self._calls = self._failures = self._peak = 0
            self._sum_s = 0.0

    def _close(self) -> None:
        mean_s = max(self._sum_s / self._calls, 1e-6)
        gradient = min(1.0, self._tolerance * min(self._baseline_s, mean_s) / mean_s)
        has_failed = self._failures * 10 >= self._calls
        if has_failed:
            gradient = min(gradient, _GRADIENT_FAILED)
        else:
            drift_s = (mean_s - self._baseline_s) * _DRIFT
            self._baseline_s = mean_s if mean_s < self._baseline_s else self._baseline_s + drift_s
        if gradient >= 1.0 and self._peak * 2 <= self._limit:
            return
        room = 0.0 if has_failed else math.sqrt(self._limit)
        wanted = self._limit * max(_GRADIENT_MIN, gradient) + room
        self._limit += _SMOOTHING * (wanted - self._limit)
        self._limit = min(self._max, max(self._min, self._limit))
