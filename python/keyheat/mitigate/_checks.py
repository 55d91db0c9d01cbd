"""What every remedy's constructor does: refuse what cannot be used, naming the setting."""

import logging
import math
from collections.abc import Collection
from datetime import timedelta

from keyheat.errors import ConfigError
from keyheat.mitigate import own_keys

Seconds = float | timedelta


def at_least(name: str, value: object, least: float) -> None:
    """Refuse a number below `least`.

    Raises:
        ConfigError: It is not a number, or below.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise ConfigError(f"{name} is {value!r}: a number of at least {least:g} is accepted")


def within(name: str, value: object, low: float, high: float) -> None:
    """Refuse a number outside `low` to `high`, both included.

    Raises:
        ConfigError: It is not a number, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}: a number from {low:g} to {high:g} is accepted")


def whole_at_least(name: str, value: object, least: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}: a whole number of at least {least} is accepted")


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


def one_of(name: str, value: object, accepted: Collection[object]) -> None:
    """Refuse a value that is not among the accepted ones.

    Raises:
        ConfigError: It is not.
    """
    if value not in accepted:
        raise ConfigError(f"{name} is {value!r}: accepted are {', '.join(map(repr, accepted))}")


def reserved_prefix(name: str, value: object) -> None:
    """Refuse a prefix that is empty or would itself carry a hash tag; what begins with it is keyheat's own.

    Raises:
        ConfigError: It is or would.
    """
    if not isinstance(value, bytes) or not value or b"{" in value:
        raise ConfigError(f"{name} is {value!r}: bytes without an opening brace are accepted")
    own_keys.reserve(value)


def as_bytes(key: object) -> bytes:
    """A key as bytes, as the client would send it.

    Raises:
        ConfigError: It is neither bytes nor text.
    """
    if isinstance(key, bytes):
        return key
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, (bytearray, memoryview)):
        return bytes(key)
    raise ConfigError(f"a key is {type(key).__name__}: bytes or str are accepted")


class OnceLogger:
    """A logger that says each thing once per object: a remedy that fails often must not flood the log."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._said: set[str] = set()

    def warning(self, slug: str, message: str, *args: object) -> None:
        """Say it, unless something under this slug was said before."""
        if slug not in self._said:
            self._said.add(slug)
            self._logger.warning(message, *args)
