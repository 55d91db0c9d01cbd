"""A longer expiry on the server for keys of named business entities, while their time lasts.

A shop with a promotion is announced beforehand: from then until its end the keys of that shop get a
longer time to live when they are written, so that a sale does not meet an empty cache. `rewrite`
takes a command as the application wrote it and returns the one to send; it changes a number in it
and nothing else.

It only ever lengthens: never shortens, never gives an expiry to a key that has none, never makes a
key permanent. It never touches a lock, for a lock that lives longer blocks: a key that was set with `NX`
(`SET … NX`, `SETNX`) keeps whatever expiry it gets for an hour. It knows of locks that it has seen taken.
Bounds: `factor_max` times what was written, and `ttl_max_s` in all.

It says nothing about local caches and copies: their staleness has a bound of its own, and a longer
expiry on the server does not loosen it. What it does loosen is how long the *application's* value
stays if the application relies on expiry to refresh it; that is its purpose and its cost.

Pure: no I/O, no clock (`now_s` is Unix time, for `EXAT` means that). The entries are replaced as a
whole, so readers in other threads see all of a change or nothing of it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from keyheat.errors import ConfigError
from keyheat.mitigate import _checks as checks
from keyheat.mitigate._patterns import matches

_OPTIONS: Final = {b"EX": (1, False), b"PX": (1000, False), b"EXAT": (1, True), b"PXAT": (1000, True)}
# Where the expiry stands in commands whose expiry is positional, its units per second, whether absolute.
_POSITIONAL: Final = {
    b"SETEX": (2, 1, False),
    b"PSETEX": (2, 1000, False),
    b"EXPIRE": (2, 1, False),
    b"PEXPIRE": (2, 1000, False),
    b"EXPIREAT": (2, 1, True),
    b"PEXPIREAT": (2, 1000, True),
}
# What may be a lock, and what a value follows that may look like an option.
_NOT_WITH: Final = frozenset((b"NX", b"IFEQ", b"IFNE", b"IFDEQ", b"IFDNE"))
# A key is taken for a lock so long after it was set as one, and so many are remembered.
_LOCK_S: Final = 3600.0
_LOCKS_MAX: Final = 16_384


@dataclass(frozen=True, slots=True)
class Entity:
    """One business entity and what it gets.

    Attributes:
        name: For people: a shop, a promotion.
        patterns: Its keys.
        starts_s: From when, in Unix time.
        ends_s: Until when, in Unix time.
        ttl_s: The time to live its keys get at least, in seconds.
        match: How patterns are read: `glob` as KEYS does, `prefix`, or `exact`.
    """

    name: str
    patterns: tuple[bytes, ...]
    starts_s: float
    ends_s: float
    ttl_s: float
    match: Literal["glob", "prefix", "exact"] = "glob"

    def __post_init__(self) -> None:
        checks.one_of("match", self.match, ("glob", "prefix", "exact"))
        checks.at_least("ttl_s", self.ttl_s, 1)
        patterns: object = self.patterns
        if not isinstance(patterns, tuple) or not patterns:
            raise ConfigError(f"patterns of {self.name!r}: a tuple of at least one pattern is accepted")
        object.__setattr__(self, "patterns", tuple(checks.as_bytes(each) for each in self.patterns))
        if not self.ends_s > self.starts_s:
            raise ConfigError(f"ends_s of {self.name!r} is {self.ends_s!r}: later than starts_s is accepted")

    def has(self, key: bytes) -> bool:
        """Whether a key belongs to it."""
        if self.match == "exact":
            return key in self.patterns
        if self.match == "prefix":
            return key.startswith(self.patterns)
        return any(matches(pattern, key) for pattern in self.patterns)


@dataclass(slots=True)
class AllowlistStats:
    """What an allowlist has done.

    Attributes:
        seen: Commands offered to `rewrite`.
        lengthened: Those that were sent with a longer expiry.
        failures: Those that could not be read, and were sent as they were.
    """

    seen: int = 0
    lengthened: int = 0
    failures: int = 0


class Allowlist:
    """Entities and the expiry their keys get.

    Args:
        entities: To begin with.
        factor_max: At most so many times the expiry that was written.
        ttl_max_s: At most so many seconds to live.

    Raises:
        ConfigError: A bound cannot be used.
    """

    def __init__(
        self, entities: Iterable[Entity] = (), *, factor_max: float = 24.0, ttl_max_s: float = 86_400.0
    ) -> None:
        checks.at_least("factor_max", factor_max, 1)
        checks.at_least("ttl_max_s", ttl_max_s, 1)
        self.enabled = True
        self._factor_max = factor_max
        self._ttl_max_s = ttl_max_s
        self._entities = tuple(entities)
        self._locks: OrderedDict[bytes, float] = OrderedDict()
        self._log = checks.OnceLogger("keyheat.mitigate.allowlist")
        self._stats = AllowlistStats()

    @property
    def entities(self) -> tuple[Entity, ...]:
        """All entities, past and future ones too."""
        return self._entities

    def add(self, entity: Entity) -> None:
        """Take an entity in; one of the same name is replaced."""
        self._entities = (*(each for each in self._entities if each.name != entity.name), entity)

    def remove(self, name: str) -> None:
        """Take an entity out."""
        self._entities = tuple(each for each in self._entities if each.name != name)

    def ttl_for(self, key: bytes | str, ttl_s: float, now_s: float) -> float:
        """The time to live a key is to get.

        Args:
            key: The key.
            ttl_s: What the application wrote, in seconds.
            now_s: Unix time.

        Returns:
            Seconds; never less than `ttl_s`.
        """
        if not self.enabled or ttl_s <= 0:
            return ttl_s
        name = checks.as_bytes(key)
        wanted = max(
            (
                each.ttl_s
                for each in self._entities
                if each.starts_s <= now_s < each.ends_s and each.has(name)
            ),
            default=0.0,
        )
        return max(ttl_s, min(wanted, ttl_s * self._factor_max, self._ttl_max_s))

    def rewrite(self, args: Sequence[Any], now_s: float, *, nx_is_lock: bool = True) -> tuple[Any, ...]:
        """The command to send instead of the one the application wrote; most often the same.

        Args:
            args: The command line.
            now_s: Unix time.
            nx_is_lock: Whether a key that is set with `NX` is taken for a lock.

        Returns:
            The command line, with a longer expiry if it writes one to a key of an entity. A command
            that cannot be read is returned as it is.
        """
        self._stats.seen += 1
        whole = tuple(args)
        if len(whole) < 3:
            return whole
        try:
            longer = self._rewritten(whole, now_s, nx_is_lock=nx_is_lock)
        except Exception as error:  # noqa: BLE001 - fail open: the command goes as it was written
            self._stats.failures += 1
            self._log.warning("read", "a command could not be read: %s", type(error).__name__)
            return whole
        if longer is None:
            return whole
        self._stats.lengthened += 1
        return longer

    def stats(self) -> AllowlistStats:
        """Counts since the object was made."""
        return self._stats

    def _rewritten(self, args: tuple[Any, ...], now_s: float, *, nx_is_lock: bool) -> tuple[Any, ...] | None:
        verb = _word(args[0])
        if nx_is_lock and _takes_lock(verb, args):
            self._remember(args[1], now_s)
            return None
        if not self.enabled or not self._entities:
            return None
        place = _expiry_of(verb, args)
        if place is None:
            return None
        at, units_per_s, is_absolute = place
        longer = self._longer(args[1], int(args[at]), (units_per_s, is_absolute), now_s)
        if longer is None or (nx_is_lock and self._is_lock(args[1], now_s)):
            return None
        return (*args[:at], longer, *args[at + 1 :])

    def _remember(self, key: object, now_s: float) -> None:
        try:
            name = checks.as_bytes(key)
        except ConfigError:
            return  # no entity has such a key
        self._locks.pop(name, None)
        self._locks[name] = now_s
        if len(self._locks) > _LOCKS_MAX:
            self._locks.popitem(last=False)

    def _is_lock(self, key: bytes | str, now_s: float) -> bool:
        taken_s = self._locks.get(checks.as_bytes(key))
        return taken_s is not None and now_s - taken_s < _LOCK_S

    def _longer(self, key: bytes | str, written: int, unit: tuple[int, bool], now_s: float) -> int | None:
        units_per_s, is_absolute = unit
        ttl_s = written / units_per_s - (now_s if is_absolute else 0.0)
        wanted_s = self.ttl_for(key, ttl_s, now_s)
        if wanted_s <= ttl_s:
            return None
        longer = int((wanted_s + (now_s if is_absolute else 0.0)) * units_per_s)
        return longer if longer > written else None


def _takes_lock(verb: bytes, args: tuple[Any, ...]) -> bool:
    """Whether a command sets a key only if it is not there."""
    return verb == b"SETNX" or (verb == b"SET" and b"NX" in map(_word, args[3:]))


def _expiry_of(verb: bytes, args: tuple[Any, ...]) -> tuple[int, int, bool] | None:
    """Where a command's expiry stands, its units per second, and whether it is absolute."""
    if verb in _POSITIONAL:
        # EXPIRE … LT shortens on purpose, and NX, XX, GT ask about what is there: left alone.
        if len(args) != 3 and not (verb in (b"SETEX", b"PSETEX") and len(args) == 4):
            return None
        return _POSITIONAL[verb]
    first = {b"SET": 3, b"GETEX": 2}.get(verb)
    return None if first is None else _option_of(args, first)


def _option_of(args: tuple[Any, ...], first: int) -> tuple[int, int, bool] | None:
    words = [_word(each) for each in args[first:]]
    if not _NOT_WITH.isdisjoint(words):
        return None
    for at, word in enumerate(words[:-1]):
        if word in _OPTIONS:
            return first + at + 1, *_OPTIONS[word]
    return None


def _word(value: object) -> bytes:
    return value.upper() if isinstance(value, bytes) else str(value).upper().encode()
