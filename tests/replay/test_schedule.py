"""When each access of a trace is due."""

from keyheat.model import Access
from keyheat.replay.schedule import scheduled


def at(*times: float | None) -> list[Access]:
    return [Access(time, "get", b"k", 0) for time in times]


def dues(accesses: list[Access], speed: float = 1.0, rate_per_s: float | None = None) -> list[float]:
    return [due.after_s for due in scheduled(accesses, speed=speed, rate_per_s=rate_per_s)]


def test_times_count_from_the_first_access_and_shrink_with_speed() -> None:
    assert dues(at(100.5, 101.5, 104.5), speed=2) == [0.0, 0.5, 2.0]


def test_whole_seconds_are_spread_over_their_second() -> None:
    assert dues(at(7, 7, 7, 7, 8, 9, 9)) == [0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5]


def test_speed_zero_is_as_fast_as_possible() -> None:
    assert dues(at(1, 50, 900), speed=0) == [0.0, 0.0, 0.0]


def test_a_trace_without_times_is_as_fast_as_possible() -> None:
    assert dues(at(None, None)) == [0.0, 0.0]


def test_a_rate_overrules_the_times() -> None:
    assert dues(at(1, 50, 900), rate_per_s=10) == [0.0, 0.1, 0.2]


def test_a_line_out_of_order_does_not_turn_time_back() -> None:
    assert dues(at(0.5, 2.5, 1.5, 3.5)) == [0.0, 2.0, 2.0, 3.0]
