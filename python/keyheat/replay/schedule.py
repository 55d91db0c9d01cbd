"""When each access of a trace is due.

Times are the trace's own, counted from its first access and divided by `speed`. Traces that carry
whole seconds would send each second's accesses in one burst at its start; theirs are spread evenly
over the second, as far as `_SPREAD_MAX` accesses reach.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from keyheat.model import Access

_SPREAD_MAX: Final = 100_000
_PROBE: Final = 1_000


class Due(NamedTuple):
    """One access and when to send it; 0 for at once."""

    after_s: float
    access: Access


def has_times(accesses: list[Access]) -> bool:
    """Whether the first accesses of a trace carry times that differ or could."""
    return bool(accesses) and all(access.at_s is not None for access in accesses)


def scheduled(accesses: Iterable[Access], *, speed: float, rate_per_s: float | None = None) -> Iterator[Due]:
    """Give every access its time.

    Args:
        accesses: The trace.
        speed: How many times faster than recorded; 0 for as fast as possible.
        rate_per_s: Ignore the trace's times and send this many a second.
    """
    stream = iter(accesses)
    first = list(itertools.islice(stream, _PROBE))
    stream = itertools.chain(first, stream)
    if rate_per_s is not None:
        return (Due(index / rate_per_s, access) for index, access in enumerate(stream))
    if speed == 0 or not has_times(first):
        return (Due(0.0, access) for access in stream)
    if all(float(access.at_s or 0).is_integer() for access in first):
        stream = _spread(stream)
    return _at_their_times(stream, speed)


def _at_their_times(accesses: Iterator[Access], speed: float) -> Iterator[Due]:
    start: float | None = None
    latest = 0.0
    for access in accesses:
        at_s = access.at_s if access.at_s is not None else (start or 0.0) + latest
        start = at_s if start is None else start
        latest = max(latest, at_s - start)  # a line out of order is due with its neighbours
        yield Due(latest / speed, access)


def _spread(accesses: Iterator[Access]) -> Iterator[Access]:
    for _, group in itertools.groupby(accesses, key=lambda access: access.at_s):
        while second := list(itertools.islice(group, _SPREAD_MAX)):
            step = 1.0 / len(second)
            for index, access in enumerate(second):
                yield access._replace(at_s=(access.at_s or 0.0) + index * step)
