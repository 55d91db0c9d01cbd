"""What a hot counter owes and how it is sent: the part sync and asyncio share, without I/O.

State is two numbers and one batch. `pending` is what callers added since the last batch was cut;
`batch` is what is on its way. A batch has a number, a target and an amount that never change, so
it can be sent again after an unknown outcome: on the server a script notes the number of the last
batch of this writer beside the target (the *marker*), and adds nothing for a number it has seen.
Marker and counter lie in one slot and are replicated together, so a failover that loses one loses
both, and sending again is right then too.

Refused: plain `INCRBY` with a retry (counts twice after a timeout) and without one (counts nothing
after a timeout); the second is what remains where scripts are refused.
"""

import itertools
import random
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from keyheat.errors import ConfigError
from keyheat.mitigate import _checks as checks
from keyheat.mitigate import own_keys
from keyheat.mitigate._commands import (
    DELETE_IF,
    Batch,
    Client,
    Command,
    Reply,
    is_cluster,
    is_outcome_unknown,
    is_refused_by_server,
)
from keyheat.mitigate._placement import primaries_of, slot_of, spread_tags, tag_of_slot
from keyheat.mitigate.steps import Steps

Amount = int | float

# How long the server remembers a writer's last batch. One of unknown outcome is not sent again after
# half of it, because then nobody could tell whether it was counted.
_MARKER_S: Final = 600.0
_TOPOLOGY_S: Final = 1.0
# One process folds at a time; one that takes longer than this may count what it moves twice.
_FOLD_MS: Final = 60_000

_ADD: Final = """
if redis.call('GET', KEYS[2]) == ARGV[3] then return 0 end
redis.call(ARGV[1], KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
if ARGV[5] ~= '0' and redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ARGV[5]) end
return 1
"""
# Moves a sub-key into its journal, in one slot; the journal is emptied only after it was counted.
_TAKE: Final = """
local moving = redis.call('GET', KEYS[2])
if moving then return moving end
local value = redis.call('GET', KEYS[1])
if not value then return false end
moving = ARGV[1] .. '|' .. value
redis.call('SET', KEYS[2], moving)
redis.call('DEL', KEYS[1])
return moving
"""


@dataclass(frozen=True, slots=True)
class CounterSettings:
    """Settings of a hot counter.

    Attributes:
        shards: Sub-keys the counter is spread over; 1 keeps it in its own key.
        interval_ms: How long increments are collected in the process before one is sent; 0 sends
            each at once.
        max_pending: Increments (calls) held unsent at most; also the most a crash can lose.
        on_full: What becomes of an increment when `max_pending` are held and cannot be sent: `error`
            raises what the server's client raised, `drop` counts it in the statistics and goes on.
        ttl_s: Time to live of keys the counter creates, from their creation; None for none.
        kind: `int` or `float`.
        prefix: Reserved prefix of sub-keys and what belongs to them.
    """

    shards: int = 1
    interval_ms: float = 10.0
    max_pending: int = 10_000
    on_full: Literal["error", "drop"] = "error"
    ttl_s: float | None = None
    kind: Literal["int", "float"] = "int"
    prefix: bytes = own_keys.PREFIX + b"counter:"

    def __post_init__(self) -> None:
        checks.whole_at_least("shards", self.shards, 1)
        if self.shards > 1024:
            raise ConfigError(f"shards is {self.shards}: 1 to 1024 are accepted")
        checks.at_least("interval_ms", self.interval_ms, 0)
        checks.whole_at_least("max_pending", self.max_pending, 1)
        checks.one_of("on_full", self.on_full, ("error", "drop"))
        if self.ttl_s is not None:
            checks.at_least("ttl_s", self.ttl_s, 0.001)
        checks.one_of("kind", self.kind, ("int", "float"))
        checks.reserved_prefix("prefix", self.prefix)


@dataclass(slots=True)
class CounterStats:
    """What a hot counter has done.

    Attributes:
        increments: Calls of `incr`.
        sent: Commands that carried them.
        pending: Increments held now, those on their way included.
        dropped: Increments given up because `max_pending` were held already.
        unknown: Increments given up because nobody can tell whether the server counted them.
        failures: Attempts to send that failed.
        unspread: Increments that went to the counter's own key because the remedy is switched off.
    """

    increments: int = 0
    sent: int = 0
    pending: int = 0
    dropped: int = 0
    unknown: int = 0
    failures: int = 0
    unspread: int = 0


@dataclass(slots=True)
class _Outgoing:
    """One batch on its way."""

    number: int
    shard: int
    amount: Amount
    increments: int
    first_sent_s: float | None = None


class CounterCore:
    """State and algorithm of one counter; callers serialise `flush_steps` themselves."""

    def __init__(
        self,
        client: Client,
        key: bytes | str,
        settings: CounterSettings,
        clock: Callable[[], float],
    ) -> None:
        self.key = checks.as_bytes(key)
        self.settings = settings
        self.stats = CounterStats()
        self._client = client
        self._clock = clock
        self._tags = spread_tags(settings.shards)
        self._by_primary: list[list[int]] = []
        self._looked_at_s = float("-inf")
        self._turn = itertools.count(random.randrange(1024))
        self._log = checks.OnceLogger("keyheat.mitigate.hot_counter")
        self._scripts = True
        self.forget()

    def forget(self) -> None:
        """Owe nothing and be another writer: a forked child, whose parent sends what is pending."""
        self._guard = threading.Lock()
        self._writer = uuid.uuid4().hex[:16].encode()
        self._numbers = itertools.count(1)
        self._amount: Amount = 0
        self._increments = 0
        self._batch: _Outgoing | None = None
        self.stats.pending = 0

    # ------------------------------------------------------------------ what callers add

    def check(self, amount: Amount) -> None:
        """Refuse an amount the counter cannot hold.

        Raises:
            ConfigError: Not a number, or not a whole one of an `int` counter.
        """
        wanted = int if self.settings.kind == "int" else (int, float)
        if isinstance(amount, bool) or not isinstance(amount, wanted):
            raise ConfigError(f"amount is {type(amount).__name__}: {self.settings.kind} is accepted")

    def add(self, amount: Amount) -> bool:
        """Hold an increment; False if there is no room."""
        with self._guard:
            held = self._increments + (self._batch.increments if self._batch else 0)
            if held >= self.settings.max_pending:
                return False
            self._amount += amount
            self._increments += 1
            self.stats.increments += 1
            self.stats.pending = held + 1
            return True

    def drop(self) -> None:
        """Count an increment for which there was no room."""
        self.stats.dropped += 1
        self._log.warning("dropped", "increments are dropped: max_pending are held and cannot be sent")

    @property
    def owes(self) -> bool:
        """Whether anything is unsent."""
        return self._increments > 0 or self._batch is not None

    # ------------------------------------------------------------------ names

    def sub_key(self, shard: int) -> bytes:
        """The key that holds one shard's part."""
        return self.key if self.settings.shards == 1 else self._beside(shard, b"n")

    def sub_keys(self) -> list[bytes]:
        """All keys whose values add up to the counter's."""
        if self.settings.shards == 1:
            return [self.key]
        return [self.key, *(self.sub_key(shard) for shard in range(self.settings.shards))]

    def _beside(self, shard: int | None, kind: bytes) -> bytes:
        """A companion in the slot of a shard, or of the counter's own key."""
        if shard is None or self.settings.shards == 1:
            tag = tag_of_slot(slot_of(self.key))
        else:
            tag = self._tags[shard]
        return b"%b{%b}:%b:%b" % (self.settings.prefix, tag, kind, self.key)

    def pick(self) -> int:
        """The next shard to add to: primaries in turn, so each gets the same share."""
        if self.settings.shards == 1:
            return 0
        turn = next(self._turn)
        if not is_cluster(self._client):
            return turn % self.settings.shards
        now = self._clock()
        if now - self._looked_at_s >= _TOPOLOGY_S or not self._by_primary:
            self._by_primary = list(primaries_of(self._client, self._tags).values())
            self._looked_at_s = now
        if not self._by_primary:
            return turn % self.settings.shards
        shards = self._by_primary[turn % len(self._by_primary)]
        return shards[turn // len(self._by_primary) % len(shards)]

    # ------------------------------------------------------------------ steps

    def direct_steps(self, amount: Amount, *, spread: bool) -> Steps[None]:
        """Send one increment at once, as the caller's own command: its error is the caller's."""
        self.stats.increments += 1
        target = self.sub_key(self.pick()) if spread else self.key
        if not spread:
            self.stats.unspread += 1
        after = yield self._plain(target, amount)
        self.stats.sent += 1
        if self.settings.ttl_s is not None and float(after) == float(amount):  # just created
            yield Command(self._client, ("PEXPIRE", target, self._ttl_ms()))

    def flush_steps(self) -> Steps[None]:
        """Send all that is held; what cannot be sent stays, and its error is raised."""
        while (batch := self._cut()) is not None:
            batch.first_sent_s = batch.first_sent_s if batch.first_sent_s is not None else self._clock()
            try:
                yield self._command(batch)
            except Exception as error:
                self.stats.failures += 1
                if not self._survives(batch, error):
                    continue
                raise
            self.stats.sent += 1
            self._settle()

    def _cut(self) -> _Outgoing | None:
        with self._guard:
            if self._batch is None and self._increments:
                if self._amount:
                    self._batch = _Outgoing(next(self._numbers), self.pick(), self._amount, self._increments)
                self._amount, self._increments = 0, 0
            self._count_pending()
            return self._batch

    def _settle(self) -> None:
        with self._guard:
            self._batch = None
            self._count_pending()

    def _count_pending(self) -> None:
        self.stats.pending = self._increments + (self._batch.increments if self._batch else 0)

    def _survives(self, batch: _Outgoing, error: Exception) -> bool:
        """Whether a batch that failed is kept to be sent again and its error is to be raised."""
        if self._scripts and is_refused_by_server(error) and _is_about_scripts(error):
            self._scripts = False
            self._log.warning(
                "scripts", "the server refuses scripts: a batch of unknown outcome is not sent again"
            )
            return False  # nothing was added: the same batch goes again, plainly
        unknown = is_outcome_unknown(error)
        too_old = self._clock() - (batch.first_sent_s or 0.0) > _MARKER_S / 2
        if unknown and (not self._scripts or too_old):
            self.stats.unknown += batch.increments
            self._log.warning("unknown", "increments given up: nobody can tell whether they were counted")
            self._settle()
        return True

    def _command(self, batch: _Outgoing) -> Command:
        target = self.sub_key(batch.shard)
        if not self._scripts:
            return self._plain(target, batch.amount)
        marker = self._beside(batch.shard, b"m:" + self._writer)
        verb, amount = self._verb_and_amount(batch.amount)
        number = b"%d" % batch.number
        return Command(
            self._client,
            ("EVAL", _ADD, 2, target, marker, verb, amount, number, int(_MARKER_S * 1000), self._ttl_ms()),
        )

    def _plain(self, target: bytes, amount: Amount) -> Command:
        verb, written = self._verb_and_amount(amount)
        return Command(self._client, (verb, target, written))

    def _verb_and_amount(self, amount: Amount) -> tuple[str, str]:
        return (
            ("INCRBY", str(amount)) if self.settings.kind == "int" else ("INCRBYFLOAT", repr(float(amount)))
        )

    def _ttl_ms(self) -> int:
        return 0 if self.settings.ttl_s is None else max(1, int(self.settings.ttl_s * 1000))

    def value_steps(self) -> Steps[Amount]:
        """Sum of all sub-keys and the counter's own key."""
        replies = yield Batch(tuple(Command(self._client, ("GET", key)) for key in self.sub_keys()))
        return self._sum(replies)

    def _sum(self, replies: list[Reply]) -> Amount:
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        read: Any = int if self.settings.kind == "int" else float
        total: Amount = sum((read(reply) for reply in replies if reply is not None), start=read(0))
        return total

    def fold_steps(self) -> Steps[None]:
        """Move every sub-key into the counter's own key; a fold that died is finished by the next."""
        if self.settings.shards == 1:
            return
        lease, name = self._beside(None, b"fold"), uuid.uuid4().hex
        if not (yield Command(self._client, ("SET", lease, name, "NX", "PX", _FOLD_MS))):
            return  # another process is at it
        for shard in range(self.settings.shards):
            yield from self._fold_one(shard)
        yield Command(self._client, ("EVAL", DELETE_IF, 1, lease, name))

    def _fold_one(self, shard: int) -> Steps[None]:
        journal = self._beside(shard, b"f")
        moving = yield Command(
            self._client, ("EVAL", _TAKE, 2, self.sub_key(shard), journal, uuid.uuid4().hex)
        )
        if moving is None:
            return
        text = moving.decode() if isinstance(moving, bytes) else str(moving)
        number, _, amount = text.partition("|")
        verb = self._verb_and_amount(0)[0]
        marker = self._beside(None, b"m:fold:%d" % shard)
        keep_ms = int(_MARKER_S * 1000)
        yield Command(
            self._client, ("EVAL", _ADD, 2, self.key, marker, verb, amount, number, keep_ms, self._ttl_ms())
        )
        yield Command(self._client, ("EVAL", DELETE_IF, 1, journal, text))

    def reset_steps(self) -> Steps[None]:
        """Forget what is held and delete every key of the counter."""
        with self._guard:
            self._amount, self._increments, self._batch = 0, 0, None
            self._count_pending()
        keys = self.sub_keys()
        if self.settings.shards > 1:
            keys += [self._beside(shard, b"f") for shard in range(self.settings.shards)]
        replies = yield Batch(tuple(Command(self._client, ("DEL", key)) for key in keys))
        self._sum(replies)

    def say_lost(self, error: BaseException) -> None:
        """Log what an exit could not send."""
        self._log.warning(
            "exit", "%d increments were not sent at exit: %s", self.stats.pending, type(error).__name__
        )


def _is_about_scripts(error: Exception) -> bool:
    text = str(error).lower()
    return "eval" in text and ("permission" in text or "unknown command" in text or "no permissions" in text)
