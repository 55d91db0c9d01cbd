"""Latencies counted in buckets whose width is under 1 % of their value, so memory is bounded.

A value of b bits keeps its top 8 bits: the bucket is those bits and the shift that removed the
others. At most 8 bits times the 57 possible shifts are ever used.
"""

from collections.abc import Mapping
from typing import Final

_KEPT_BITS: Final = 8


class Histogram:
    """Counts of nanosecond values; mergeable, and the maximum is exact."""

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.max_ns = 0

    def add(self, value_ns: int) -> None:
        """Count one value; a negative one counts as 0."""
        value_ns = max(value_ns, 0)
        shift = max(0, value_ns.bit_length() - _KEPT_BITS)
        bucket = (shift << _KEPT_BITS) | (value_ns >> shift)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.max_ns = max(self.max_ns, value_ns)

    def quantile_ms(self, share: float) -> float:
        """The value in milliseconds that `share` of the counted values do not pass; 0 if there are none."""
        rank = share * self.count
        seen = 0
        for bucket in sorted(self.buckets, key=_floor):
            seen += self.buckets[bucket]
            if seen >= rank:
                return min(_ceiling(bucket), self.max_ns) / 1e6
        return self.max_ns / 1e6

    def to_json(self) -> dict[str, object]:
        """For another process to merge."""
        return {"buckets": self.buckets, "max_ns": self.max_ns}

    def merge_json(self, whole: Mapping[str, object]) -> None:
        """Add what another process counted."""
        buckets, max_ns = whole["buckets"], whole["max_ns"]
        if not isinstance(buckets, dict) or not isinstance(max_ns, int):
            raise TypeError("not a histogram")
        for bucket, count in buckets.items():
            self.buckets[int(bucket)] = self.buckets.get(int(bucket), 0) + int(count)
            self.count += int(count)
        self.max_ns = max(self.max_ns, max_ns)

    def summary_ms(self) -> dict[str, float]:
        """The percentiles a report shows."""
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
        return {name: round(self.quantile_ms(share), 3) for name, share in shares.items()} | {
            "max": round(self.max_ns / 1e6, 3)
        }


def _floor(bucket: int) -> int:
    return (bucket & ((1 << _KEPT_BITS) - 1)) << (bucket >> _KEPT_BITS)


def _ceiling(bucket: int) -> int:
    return _floor(bucket) + (1 << (bucket >> _KEPT_BITS)) - 1
