"""How old what a read returned was, worked out over every read.

A read sent at time t that returned write n was stale if a newer write had been acknowledged before
t; it was stale by t minus the time of the *first* such acknowledgement. Writes of unknown outcome
count as not acknowledged: they may never have happened. The figure does not depend on any clock but
one, that of the machine.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Staleness:
    """Over all reads of one phase."""

    reads: int
    max_ms: float
    p99_ms: float
    first_read_ns: int | None


def newer_acknowledged(acknowledged_ns: "array[int]") -> list[int | None]:
    """For each write number, 0 included, when the first newer write was acknowledged."""
    newer: list[int | None] = [None] * (len(acknowledged_ns) + 1)
    for number in range(len(acknowledged_ns), 0, -1):
        # acknowledged_ns[number - 1] belongs to write `number`; one writer, so times only grow.
        newer[number - 1] = acknowledged_ns[number - 1] or newer[number]
    return newer


def measure(reads: "Iterable[array[int]]", acknowledged_ns: "array[int]") -> Staleness:
    """Work out the staleness of reads, given as arrays of (sent_ns, write number) pairs."""
    newer = newer_acknowledged(acknowledged_ns)
    ages_ns: list[int] = []
    first_ns: int | None = None
    for noted in reads:
        for at in range(0, len(noted), 2):
            sent_ns, number = noted[at], noted[at + 1]
            newer_ns = newer[number]
            ages_ns.append(max(0, sent_ns - newer_ns) if newer_ns is not None else 0)
            first_ns = sent_ns if first_ns is None else min(first_ns, sent_ns)
    ages_ns.sort()
    p99 = ages_ns[min(len(ages_ns) - 1, int(0.99 * len(ages_ns)))] if ages_ns else 0
    return Staleness(len(ages_ns), (ages_ns[-1] if ages_ns else 0) / 1e6, p99 / 1e6, first_ns)
