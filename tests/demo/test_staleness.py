"""How staleness is worked out: checked against the definition, read by read."""

import random
from array import array

import pytest

from keyheat.demo.staleness import measure

MS = 1_000_000


def exact_ns(sent_ns: int, number: int, acknowledged_ns: list[int]) -> int:
    """The definition, spelled out: how long before the read the first newer write was acknowledged."""
    newer = [
        at for later, at in enumerate(acknowledged_ns, start=1) if later > number and at and at < sent_ns
    ]
    return sent_ns - min(newer) if newer else 0


def test_a_read_of_the_newest_write_is_fresh() -> None:
    found = measure([array("q", [500, 2])], array("q", [100, 200]))
    assert (found.max_ms, found.reads, found.first_read_ns) == (0, 1, 500)


def test_age_counts_from_the_first_newer_acknowledgement() -> None:
    found = measure([array("q", [900 * MS, 1])], array("q", [100 * MS, 200 * MS, 300 * MS]))
    assert found.max_ms == pytest.approx(700)


def test_a_write_acknowledged_after_the_read_began_makes_it_no_older() -> None:
    assert measure([array("q", [150, 0])], array("q", [151])).max_ms == 0


def test_a_write_of_unknown_outcome_is_none() -> None:
    assert measure([array("q", [900 * MS, 1])], array("q", [100 * MS, 0])).max_ms == 0
    assert measure([array("q", [900 * MS, 1])], array("q", [100 * MS, 0, 400 * MS])).max_ms == pytest.approx(
        500
    )


def test_no_reads_are_no_staleness() -> None:
    found = measure([array("q")], array("q"))
    assert (found.reads, found.max_ms, found.p99_ms, found.first_read_ns) == (0, 0, 0, None)


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_the_definition_on_random_histories(seed: int) -> None:
    chance = random.Random(seed)
    at = 0
    acknowledged = []
    for _ in range(40):
        at += chance.randrange(1, 50)
        acknowledged.append(0 if chance.random() < 0.1 else at)
    reads = [(chance.randrange(at + 50), chance.randrange(41)) for _ in range(300)]
    found = measure([array("q", [n for pair in reads for n in pair])], array("q", acknowledged))
    ages = sorted(exact_ns(sent, number, acknowledged) for sent, number in reads)
    assert found.max_ms == ages[-1] / 1e6
    assert found.p99_ms == ages[297] / 1e6
