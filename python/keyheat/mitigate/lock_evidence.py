"""Is this key a lock? Told by the commands that touch it; no I/O, no clock.

A lock must never be cached, copied or read from a replica, and nothing in Redis marks it. What
marks it is how it is used. The evidence, strongest first:

- a rule says so (`lock_patterns`), or says it is not (`data_patterns`);
- the key is compared and deleted, or compared and prolonged, in one step: a script that does it
  (known by its digest, or by its shape when its source is seen), `DELEX … IFEQ`, `DELIFEQ`;
- the key is taken with NX and an expiry (`SET … NX PX`, `SETNX` and `EXPIRE`), and then deleted.

NX with an expiry alone is *suspicion*: it also fills caches. A suspected key is not a lock, but it is
not cached either until a rule allows it (`bars_caching`).

Wrong in the safe direction: a cache that is filled by NX and invalidated by DEL looks like a lock,
and is left alone until `data_patterns` says otherwise.

Evidence lasts `evidence_s` from the last sight of it, so a lock taken once an hour is still known.
Memory: at most `max_keys` keys and as many script digests, the longest unseen forgotten first. A
forgotten lock is unknown until its next use, which is evidence again.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, TypeAlias

from keyheat.errors import ConfigError
from keyheat.mitigate import _checks as checks
from keyheat.mitigate._patterns import matches

Verdict: TypeAlias = Literal["lock", "suspected", "no"]

_GETS: Final = re.compile(rb"call\(\s*['\"]get['\"]\s*,\s*keys\[1\]\s*\)")
_DELETES: Final = re.compile(rb"call\(\s*['\"](del|unlink)['\"]\s*,\s*keys\[1\]")
_PROLONGS: Final = re.compile(rb"call\(\s*['\"]p?expire['\"]\s*,\s*keys\[1\]")
_COMPARES: Final = re.compile(rb"[=~]=\s*argv\[\d\]|argv\[\d\]\s*[=~]=|==\s*\w+|~=\s*\w+")
# Redisson and its kin keep the owner in a hash.
_OWNER_HASH: Final = re.compile(rb"call\(\s*['\"]hexists['\"]\s*,\s*keys\[1\]")
_OWNER_COUNTS: Final = re.compile(rb"call\(\s*['\"]hincrby['\"]\s*,\s*keys\[1\]")


def _known_digests() -> frozenset[bytes]:
    """Digests of lock scripts as libraries send them (EVALSHA shows nothing else)."""
    from redis.lock import Lock  # noqa: PLC0415 - only the texts of its scripts

    texts = [Lock.LUA_RELEASE_SCRIPT, Lock.LUA_EXTEND_SCRIPT, Lock.LUA_REACQUIRE_SCRIPT, *_REDLOCK_TEXTS]
    return frozenset(_digest(text.encode()) for text in texts)


# The release of the Redlock algorithm as its description prints it, in the spellings in use.
_REDLOCK_TEXTS: Final = (
    'if redis.call("get",KEYS[1]) == ARGV[1] then\n'
    '    return redis.call("del",KEYS[1])\nelse\n    return 0\nend',
    'if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) else return 0 end',
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end",
)


class LockEvidence:
    """Fed with commands, says which keys are locks.

    Args:
        lock_patterns: Keys that are locks, as KEYS' patterns.
        data_patterns: Keys that are not, whatever is seen of them; `lock_patterns` win.
        evidence_s: How long evidence lasts after it was last seen.
        pair_s: How long after NX a DEL still counts as its release.
        max_keys: Keys remembered at most.

    Raises:
        ConfigError: A setting cannot be used.
    """

    def __init__(
        self,
        *,
        lock_patterns: Iterable[bytes] = (),
        data_patterns: Iterable[bytes] = (),
        evidence_s: float = 3600.0,
        pair_s: float = 600.0,
        max_keys: int = 100_000,
    ) -> None:
        checks.at_least("evidence_s", evidence_s, 0)
        checks.at_least("pair_s", pair_s, 0)
        checks.whole_at_least("max_keys", max_keys, 1)
        self._lock_patterns = _as_patterns("lock_patterns", lock_patterns)
        self._data_patterns = _as_patterns("data_patterns", data_patterns)
        self._evidence_s = evidence_s
        self._pair_s = pair_s
        self._max_keys = max_keys
        self._locks: OrderedDict[bytes, float] = OrderedDict()
        self._suspects: OrderedDict[bytes, float] = OrderedDict()
        self._setnx: OrderedDict[bytes, float] = OrderedDict()
        self._digests: OrderedDict[bytes, None] = OrderedDict.fromkeys(_known_digests())

    def observe(self, args: Sequence[Any], now_s: float) -> None:
        """Take note of a command.

        Args:
            args: The command line as a client would send it.
            now_s: When, in seconds on any clock that goes forward.
        """
        if not args:
            return
        words = args[0] if isinstance(args[0], bytes) else str(args[0]).encode()
        verb, *rest = words.upper().split() or [b""]
        if verb in _WATCHED:
            self._take_note(verb, [*rest, *(_bytes(each) for each in args[1:])], now_s)

    def verdict(self, key: bytes, now_s: float) -> Verdict:
        """What is known of a key: `lock`, `suspected` (NX with an expiry, no more), or `no`."""
        if any(matches(pattern, key) for pattern in self._lock_patterns):
            return "lock"
        if any(matches(pattern, key) for pattern in self._data_patterns):
            return "no"
        if _is_fresh(self._locks, key, now_s, self._evidence_s):
            return "lock"
        if _is_fresh(self._suspects, key, now_s, self._evidence_s):
            return "suspected"
        return "no"

    def is_lock(self, key: bytes, now_s: float) -> bool:
        """Whether the key is a lock."""
        return self.verdict(key, now_s) == "lock"

    def bars_caching(self, key: bytes, now_s: float) -> bool:
        """Whether the key must not be cached: a lock, or one suspected that no rule allows."""
        return self.verdict(key, now_s) != "no"

    def _take_note(self, verb: bytes, rest: list[bytes], now_s: float) -> None:
        if verb in (b"EVAL", b"EVALSHA", b"EVAL_RO", b"SCRIPT"):
            self._of_script(verb, rest, now_s)
        elif verb in (b"DEL", b"UNLINK"):
            for key in rest:
                if _is_fresh(self._suspects, key, now_s, self._pair_s):
                    self._remember(self._locks, key, now_s)
        elif rest:
            self._of_key(verb, rest, now_s)

    def _of_key(self, verb: bytes, rest: list[bytes], now_s: float) -> None:
        if verb == b"SET":
            self._of_set(rest, now_s)
        elif verb == b"SETNX":
            self._remember(self._setnx, rest[0], now_s)
        elif verb in (b"EXPIRE", b"PEXPIRE"):
            if _is_fresh(self._setnx, rest[0], now_s, self._pair_s):
                self._remember(self._suspects, rest[0], now_s)
        elif verb == b"DELIFEQ" or (verb == b"DELEX" and b"IFEQ" in _upper(rest[2:3] + rest[1:2])):
            self._remember(self._locks, rest[0], now_s)

    def _of_set(self, rest: list[bytes], now_s: float) -> None:
        options = _upper(rest[2:])
        if b"NX" in options and any(option in options for option in (b"EX", b"PX", b"EXAT", b"PXAT")):
            self._remember(self._suspects, rest[0], now_s)
            if rest[0] in self._locks:
                self._remember(self._locks, rest[0], now_s)

    def _of_script(self, verb: bytes, rest: list[bytes], now_s: float) -> None:
        if verb == b"SCRIPT":
            if len(rest) > 1 and rest[0].upper() == b"LOAD" and is_lock_script(rest[1]):
                self._learn(_digest(rest[1]))
            return
        if len(rest) < 3 or not rest[1].isdigit() or int(rest[1]) < 1:
            return
        if verb == b"EVALSHA":
            is_known = rest[0].lower() in self._digests
        elif is_known := is_lock_script(rest[0]):
            self._learn(_digest(rest[0]))
        if is_known:
            for key in rest[2 : 2 + min(int(rest[1]), 16)][:1]:
                self._remember(self._locks, key, now_s)

    def _learn(self, digest: bytes) -> None:
        self._digests[digest] = None
        while len(self._digests) > self._max_keys:
            self._digests.popitem(last=False)

    def _remember(self, where: OrderedDict[bytes, float], key: bytes, now_s: float) -> None:
        where[key] = now_s
        where.move_to_end(key)
        while len(where) > self._max_keys:
            where.popitem(last=False)


_WATCHED: Final = frozenset(
    (
        *(b"SET", b"SETNX", b"EXPIRE", b"PEXPIRE", b"DEL", b"UNLINK", b"DELEX", b"DELIFEQ"),
        *(b"EVAL", b"EVALSHA", b"EVAL_RO", b"SCRIPT"),
    )
)


def is_lock_script(source: bytes) -> bool:
    """Whether a script has the shape of a lock's: compare with an argument, then delete or prolong."""
    text = source.lower()
    if _OWNER_HASH.search(text) and (_OWNER_COUNTS.search(text) or _PROLONGS.search(text)):
        return True
    compares = bool(_GETS.search(text)) and b"argv[" in text and bool(_COMPARES.search(text))
    return compares and bool(_DELETES.search(text) or _PROLONGS.search(text))


def _digest(source: bytes) -> bytes:
    return hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()


def _is_fresh(where: OrderedDict[bytes, float], key: bytes, now_s: float, lasts_s: float) -> bool:
    seen = where.get(key)
    return seen is not None and now_s - seen <= lasts_s


def _upper(words: list[bytes]) -> list[bytes]:
    return [word.upper() for word in words]


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _as_patterns(name: str, patterns: object) -> tuple[bytes, ...]:
    if isinstance(patterns, (bytes, str)) or not isinstance(patterns, Iterable):
        raise ConfigError(f"{name} is one pattern: a list of patterns is accepted")
    return tuple(checks.as_bytes(pattern) for pattern in patterns)
