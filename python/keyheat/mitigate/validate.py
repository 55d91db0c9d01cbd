"""Checks of settings that have an upper bound or are durations; see `_checks` for the plain ones."""

import math
from datetime import timedelta

from keyheat.errors import ConfigError

Seconds = float | timedelta


def within(name: str, value: object, low: float, high: float) -> None:
    """Refuse a number outside `low` to `high`, both included.

    Raises:
        ConfigError: It is not a number, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}: a number from {low:g} to {high:g} is accepted")


def seconds(name: str, value: object, *, is_zero_accepted: bool = False) -> float:
    """A duration, given as seconds or as a timedelta, in seconds.

    Raises:
        ConfigError: It is neither, endless, negative, or zero where that means nothing.
    """
    found = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        found = -1.0
    if found > 0 or (is_zero_accepted and found == 0):
        return float(found)
    least = "0 or more" if is_zero_accepted else "more than 0"
    raise ConfigError(f"{name} is {value!r}: {least} seconds are accepted, or a timedelta")
