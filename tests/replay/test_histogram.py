"""Percentiles of a replay."""

import json
import random

import pytest

from keyheat.replay.histogram import Histogram


def test_percentiles_are_within_a_percent_of_the_exact_ones() -> None:
    chance = random.Random(1)
    values = [int(chance.lognormvariate(12, 2)) for _ in range(20_000)]
    counted = Histogram()
    for value in values:
        counted.add(value)
    values.sort()
    for share in (0.5, 0.9, 0.99, 0.999):
        exact_ms = values[round(share * len(values)) - 1] / 1e6
        assert counted.quantile_ms(share) == pytest.approx(exact_ms, rel=0.01)
    assert counted.max_ns == values[-1]


def test_percentiles_only_grow() -> None:
    counted = Histogram()
    for value in (255, 256, 511, 512, 1023, 1024, 65_535):
        counted.add(value)
    shares = [n / 100 for n in range(1, 101)]
    found = [counted.quantile_ms(share) for share in shares]
    assert found == sorted(found)
    assert found[-1] == 65_535 / 1e6


def test_merging_through_json_adds_up() -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for value in range(1, 2000, 7):
        one.add(value)
        both.add(value)
    for value in range(1, 900_000, 1013):
        other.add(value)
        both.add(value)
    one.merge_json(json.loads(json.dumps(other.to_json())))
    assert one.summary_ms() == both.summary_ms()
    assert one.count == both.count


def test_an_empty_histogram_is_all_zero() -> None:
    assert set(Histogram().summary_ms().values()) == {0.0}
