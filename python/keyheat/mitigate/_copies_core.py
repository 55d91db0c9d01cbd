"""How copies are placed, made, read, voided and removed; what sync and asyncio share, without I/O.

Beside the original, in its slot, lie the *lease* (who makes its copies) and the *register*: a version
`v` that every write moves, and under `c:<index>` when a copy was last placed where. Beside each copy,
in the copy's slot, lies its *fence*: the version below which nothing may be placed any more, and the
digest of what the copy holds.

Making (owner): 1. enter the places in the register and read version and the server's time; 2. read
the time to live; 3. `DUMP`; 4. at each place, in one script, restore unless the fence is above the
version. Writing: 1. the write; 2. move the version and read the places; 3. at each place set the
fence to that version and delete the copy; then the write is acknowledged.

Why no copy older than an acknowledged write is left: a copy whose `DUMP` came before the write was
made under an older version, so it was either there when the fence was set, and deleted, or comes
later, and is refused. A place the writer did not see in the register was entered after the version
moved, hence its `DUMP` came after the write. Where a fence cannot be set, the write waits until every
copy has expired. Versions are the server's microseconds, so one that was lost grows again.

Why a copy is never older than `max_staleness_ms` whatever happens: it expires by itself, counted from
the original's server's time *before* the `DUMP`, less `clock_skew_ms`. `PEXPIREAT` renews it while the
original has the same value. So a dead owner's copies vanish, and a restore that arrives late is born
expired. The bound holds while the primaries' clocks differ by no more than `clock_skew_ms`.
"""

import hashlib
import random
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from keyheat.errors import ConfigError, UpstreamUnreachableError
from keyheat.mitigate import _checks as checks
from keyheat.mitigate import own_keys
from keyheat.mitigate._commands import (
    DELETE_IF,
    Batch,
    Client,
    Command,
    Fan,
    Relearn,
    Reply,
    is_cluster,
    is_connection_error,
    is_moved,
)
from keyheat.mitigate._copies_scripts import FENCE, LEASE, MOVE, PLACE
from keyheat.mitigate._node_clients import NodeClient, NodeClients, has_own_decoding
from keyheat.mitigate._placement import (
    primaries_of,
    primary_of_slot,
    slot_of,
    spread_tags,
    tag_of_slot,
)
from keyheat.mitigate._reads import COPY_READS, says_something, verb_of
from keyheat.mitigate.steps import Sleep, Steps

_PLACES: Final = 256
_TOPOLOGY_S: Final = 0.1
_MISS_FIRST_S: Final = 0.02
_MISS_LONGEST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class CopiesSettings:
    """Settings of copies.

    Attributes:
        copies_max: Copies beside the original; None for one on every other primary.
        max_staleness_ms: No copy is older. A third of it is the time between renewals.
        clock_skew_ms: By how much the primaries' clocks may differ; taken off the copies' life.
        copy_max_bytes: Larger values are not copied.
        copy_timeout_ms: How long a copy's node may take to answer before the original is asked; a node that
            did not answer is left alone for a while.
        keys_max: Keys copied at a time.
        prefix: Reserved prefix of copies and what belongs to them.
    """

    copies_max: int | None = None
    max_staleness_ms: float = 1000.0
    clock_skew_ms: float = 100.0
    copy_max_bytes: int = 1 << 20
    copy_timeout_ms: float = 250.0
    keys_max: int = 64
    prefix: bytes = own_keys.PREFIX + b"copy:"

    def __post_init__(self) -> None:
        if self.copies_max is not None:
            checks.whole_at_least("copies_max", self.copies_max, 1)
        checks.at_least("max_staleness_ms", self.max_staleness_ms, 50)
        checks.at_least("clock_skew_ms", self.clock_skew_ms, 0)
        if self.clock_skew_ms > self.max_staleness_ms / 2:
            raise ConfigError(
                f"clock_skew_ms is {self.clock_skew_ms:g}: at most half of max_staleness_ms is accepted"
            )
        checks.whole_at_least("copy_max_bytes", self.copy_max_bytes, 1)
        checks.at_least("copy_timeout_ms", self.copy_timeout_ms, 1)
        checks.whole_at_least("keys_max", self.keys_max, 1)
        checks.reserved_prefix("prefix", self.prefix)


@dataclass(slots=True)
class CopiesStats:
    """What copies have done.

    Attributes:
        hot: Keys told hot now.
        owned: Those this process makes the copies of.
        copy_reads: Reads a copy answered.
        original_reads: Reads of hot keys the original answered because it was its turn.
        missed: Reads that asked a copy in vain, and then the original.
        restored: Copies written anew.
        renewed: Copies whose life was prolonged.
        voided: Restores refused because a write came in between.
        invalidations: Writes after which copies were voided.
        waited_out: Those that had to wait for copies to expire.
        failures: Rounds of an owner that failed.
    """

    hot: int = 0
    owned: int = 0
    copy_reads: int = 0
    original_reads: int = 0
    missed: int = 0
    restored: int = 0
    renewed: int = 0
    voided: int = 0
    invalidations: int = 0
    waited_out: int = 0
    failures: int = 0


@dataclass(slots=True)
class CopiedKey:
    """What this process knows of one hot key.

    Attributes:
        is_owner: Whether this process makes its copies.
        copies: How many were confirmed in the owner's last round.
        reason: Why there are none, if there are none.
    """

    key: bytes
    is_owner: bool = False
    copies: int = 0
    reason: str | None = None
    next_round_s: float = float("-inf")
    digest: bytes = b""
    skip_until_s: dict[int, float] = field(default_factory=dict)
    skip_s: dict[int, float] = field(default_factory=dict)


class CopiesCore:
    """State and algorithm; rounds of one object are serialised by the caller."""

    def __init__(
        self,
        client: Client,
        settings: CopiesSettings,
        clock: Callable[[], float],
        is_lock: Callable[[bytes], bool] | None,
    ) -> None:
        if not is_cluster(client):
            raise ConfigError(f"client is {type(client).__name__}: copies need the client of a Cluster")
        self.settings = settings
        self.stats = CopiesStats()
        self._client = client
        self._clock = clock
        self._is_lock = is_lock
        self._tags = spread_tags(_PLACES)
        self._keys: dict[bytes, CopiedKey] = {}
        self._by_primary: dict[str, list[int]] = {}
        self._looked_at_s = float("-inf")
        self._log = checks.OnceLogger("keyheat.mitigate.copies")
        self._nodes = NodeClients(client, settings.copy_timeout_ms / 1000)
        self.forget()

    def forget(self) -> None:
        """Own nothing: a forked child, whose parent goes on."""
        self._guard = threading.Lock()
        self._owner = uuid.uuid4().hex
        self._nodes.forget()
        for state in self._keys.values():
            state.is_owner = False

    @property
    def round_s(self) -> float:
        """Seconds between two rounds of an owner."""
        return self.settings.max_staleness_ms / 3000

    # ------------------------------------------------------------------ told hot, told cool

    def heat(self, key: bytes | str) -> bool:
        """Take a key in; False if it is a lock, one of keyheat's own, or there is no room."""
        name = checks.as_bytes(key)
        with self._guard:
            if name in self._keys:
                return True
            if own_keys.is_own_key(name) or (self._is_lock is not None and self._is_lock(name)):
                return False
            if len(self._keys) >= self.settings.keys_max:
                self._log.warning("keys_max", "keys_max keys are copied already: others are not")
                return False
            self._keys[name] = CopiedKey(name)
            return True

    def state(self, key: bytes | str) -> CopiedKey | None:
        """What is known of a hot key; None for others."""
        return self._keys.get(checks.as_bytes(key))

    def hot(self) -> list[CopiedKey]:
        """All keys told hot."""
        with self._guard:
            return list(self._keys.values())

    def cool_steps(self, key: bytes | str) -> Steps[None]:
        """Forget a key; its owner removes the copies and gives up the lease."""
        with self._guard:
            state = self._keys.pop(checks.as_bytes(key), None)
        if state is None or not state.is_owner:
            return
        state.is_owner = False
        try:
            yield from self._void(state.key)
            yield Command(self._client, ("EVAL", DELETE_IF, 1, self._beside(state.key, b"o"), self._owner))
        except Exception as error:  # noqa: BLE001 - they expire by themselves
            self._failed(state, error)

    # ------------------------------------------------------------------ names and places

    def copy_name(self, key: bytes, place: int) -> bytes:
        """The name of a key's copy at a place."""
        return b"%b{%b}:c:%b" % (self.settings.prefix, self._tags[place], key)

    def _fence_name(self, key: bytes, place: int) -> bytes:
        return b"%b{%b}:f:%b" % (self.settings.prefix, self._tags[place], key)

    def _beside(self, key: bytes, kind: bytes) -> bytes:
        return b"%b{%b}:%b:%b" % (self.settings.prefix, tag_of_slot(slot_of(key)), kind, key)

    def places(self, key: bytes) -> list[int]:
        """Where the key's copies lie now: one place on each primary but its own."""
        now = self._clock()
        if now - self._looked_at_s >= _TOPOLOGY_S or not self._by_primary:
            self._by_primary = primaries_of(self._client, self._tags)
            self._looked_at_s = now
        own = primary_of_slot(self._client, slot_of(key))
        others = [owned[0] for name, owned in sorted(self._by_primary.items()) if name != own]
        wanted = self.settings.copies_max
        if wanted is None or wanted >= len(others):
            return others
        start = slot_of(key) % len(others)
        return (others + others)[start : start + wanted]

    # ------------------------------------------------------------------ reading

    def read_steps(
        self, args: tuple[Any, ...], options: Mapping[str, Any], *, enabled: bool, key: bytes | None = None
    ) -> Steps[Reply]:
        """Run a read on a random copy or the original; what a copy cannot answer, the original does.

        `key` is its key as the server sees it, if that is known.
        """
        plain = Command(self._client, args, options)
        verb = verb_of(args)
        if not enabled or len(args) < 2 or verb not in COPY_READS:
            return (yield plain)
        state = self._keys.get(checks.as_bytes(args[1]) if key is None else key)
        if state is None or (len(args) > 2 and verb == b"EXISTS") or has_own_decoding(self._client, args):
            return (yield plain)
        place = self._choose(state)
        node = None if place is None else self._node_of(state.key, place)
        if place is None or node is None:
            self.stats.original_reads += 1
            return (yield plain)
        try:
            name = self.copy_name(state.key, place)
            reply = yield Command(node.client, (args[0], name, *args[2:]), options)
        except Exception as error:  # noqa: BLE001 - whatever a copy says, the original has the last word
            reply = None
            self._heard(node, error)
        if says_something(reply):
            self.stats.copy_reads += 1
            state.skip_s.pop(place, None)
            node.answered()
            return reply
        self.stats.missed += 1
        self._skip(state, place)
        return (yield plain)

    def _node_of(self, key: bytes, place: int) -> NodeClient | None:
        """Where a copy lies, unless that node is left alone."""
        node = self._nodes.of_slot(slot_of(self.copy_name(key, place)))
        return node if node is not None and node.skip_until_s <= self._clock() else None

    def _heard(self, node: NodeClient, error: object) -> None:
        """A node has answered, or not."""
        if is_connection_error(error):
            node.failed(self._clock(), 2 * self.settings.copy_timeout_ms / 1000)
            self._log.warning("node", "a copy's node did not answer: %s", type(error).__name__)

    def _choose(self, state: CopiedKey) -> int | None:
        places = self.places(state.key)
        chosen = random.randrange(len(places) + 1)
        if chosen == len(places):
            return None
        place = places[chosen]
        return None if state.skip_until_s.get(place, 0.0) > self._clock() else place

    def _skip(self, state: CopiedKey, place: int) -> None:
        """Leave a place that had no copy alone for a while, longer each time."""
        wait_s = min(_MISS_LONGEST_S, 2 * state.skip_s.get(place, _MISS_FIRST_S / 2))
        state.skip_s[place] = wait_s
        state.skip_until_s[place] = self._clock() + wait_s

    # ------------------------------------------------------------------ writing

    def write_steps(self, args: tuple[Any, ...], *, enabled: bool) -> Steps[Reply]:
        """Run a write; return when no copy from before it is left."""
        key = args[1] if len(args) > 1 else b""
        is_copied = enabled and len(args) > 1 and self.state(key) is not None
        try:
            reply = yield Command(self._client, args)
        except Exception:
            if is_copied:  # it may have been done all the same
                yield from self.invalidate_steps(key)
            raise
        if is_copied:
            yield from self.invalidate_steps(key)
        return reply

    def invalidate_steps(self, key: bytes | str) -> Steps[None]:
        """Void all copies of a hot key; on return each is deleted or has expired. Never raises."""
        state = self.state(key)
        if state is not None:
            yield from self.void_steps(state.key)

    def void_steps(self, key: bytes) -> Steps[None]:
        """As `invalidate_steps`, for any key."""
        self.stats.invalidations += 1
        began_s = self._clock()
        try:
            yield from self._void(key)
        except Exception as error:  # noqa: BLE001 - the copies' own expiry is what remains
            self._log.warning(
                "waited_out",
                "copies could not be deleted (%s): the write waits for them to expire",
                type(error).__name__,
            )
            self.stats.waited_out += 1
            # What was copied before the write began to be voided has expired when its life is over.
            left_s = self.settings.max_staleness_ms / 1000 - (self._clock() - began_s)
            yield Sleep(max(0.0, left_s))
        state = self._keys.get(key)
        if state is not None:
            state.next_round_s = float("-inf")

    def _void(self, key: bytes) -> Steps[None]:
        keep_ms = self._keep_ms()
        moved = yield Command(self._client, ("EVAL", MOVE, 1, self._beside(key, b"r"), keep_ms, keep_ms))
        version, *noted = (_text(each) for each in moved)
        # Where copies lie now besides what the register says, for it may have been flushed or evicted.
        places = sorted({int(place) for place in noted} | set(self.places(key)))
        fences = []
        for place in places:
            node = self._nodes.of_slot(slot_of(self.copy_name(key, place)))
            if node is None:
                raise UpstreamUnreachableError("no primary is known for a copy")
            line = (
                "EVAL",
                FENCE,
                2,
                self.copy_name(key, place),
                self._fence_name(key, place),
                version,
                keep_ms,
            )
            fences.append((node, Command(node.client, line)))
        if not fences:
            return
        if any(node.skip_until_s > self._clock() for node, _ in fences):
            # It would cost its timeout once more; the others' copies are deleted all the same.
            fences = [(node, each) for node, each in fences if node.skip_until_s <= self._clock()]
            yield Fan(tuple(command for _, command in fences))
            raise UpstreamUnreachableError("a copy's node is left alone")
        replies = yield Fan(tuple(command for _, command in fences))
        for (node, _), reply in zip(fences, replies, strict=True):
            self._heard(node, reply)
        if any(is_connection_error(reply) for reply in replies):
            yield Relearn(self._client)
        if any(isinstance(reply, Exception) for reply in replies):
            # Where a slot has moved the client's own way finds it, unless a node is gone.
            _raise_unless_moved(replies)
            again = tuple(Command(self._client, command.args) for _, command in fences)
            _raise_first((yield Batch(again)))

    def _keep_ms(self) -> int:
        """How long registers and fences live: well past any copy made under an older version."""
        return int(4 * self.settings.max_staleness_ms + 2 * self.settings.clock_skew_ms)

    def close_steps(self) -> Steps[None]:
        """Close the connections to copies' nodes."""
        yield from self._nodes.close_steps()

    # ------------------------------------------------------------------ owning

    def round_steps(self, *, enabled: bool) -> Steps[None]:
        """One round over all hot keys whose time has come."""
        for state in self.hot():
            if enabled and state.next_round_s <= self._clock():
                try:
                    yield from self._round(state)
                except Exception as error:  # noqa: BLE001 - without copies reads go to the original
                    self._failed(state, error)
        states = self.hot()
        self.stats.hot = len(states)
        self.stats.owned = sum(state.is_owner for state in states)

    def _failed(self, state: CopiedKey, error: Exception) -> None:
        self.stats.failures += 1
        state.copies = 0
        state.reason = f"{type(error).__name__}: {_code(error)}"
        self._log.warning("round", "copies of a hot key could not be made: %s", state.reason)

    def _round(self, state: CopiedKey) -> Steps[None]:
        places = self.places(state.key)
        if not places:
            state.reason, state.copies = "there is no other primary", 0
            return
        lease_ms = int(2 * self.settings.max_staleness_ms)
        now = self._clock()
        # As an owner every round; as a candidate now and then, so that the hot node is not asked by all.
        state.next_round_s = now + lease_ms / 1000 * (0.5 + random.random())
        names = (self._beside(state.key, b"o"), self._beside(state.key, b"r"))
        answer = yield Command(
            self._client,
            ("EVAL", LEASE, 2, *names, self._owner, lease_ms, self._keep_ms(), *map(str, places)),
        )
        state.is_owner = bool(int(answer[0]))
        if not state.is_owner:
            state.reason, state.copies = "another process makes them", 0
            return
        state.next_round_s = now + self.round_s * 0.9
        version, at_ms = _text(answer[1]), int(answer[2])
        yield from self._make(state, places, version, at_ms)

    def _make(self, state: CopiedKey, places: list[int], version: str, at_ms: int) -> Steps[None]:
        settings = self.settings
        about = yield Batch(
            (Command(self._client, ("PTTL", state.key)), Command(self._client, ("MEMORY USAGE", state.key)))
        )
        ttl_ms, used_bytes = about
        if isinstance(ttl_ms, Exception):
            raise ttl_ms
        if ttl_ms == -2:
            yield from self._give_up(state, "the original does not exist")
            return
        if isinstance(used_bytes, int) and used_bytes > 2 * settings.copy_max_bytes:
            yield from self._give_up(state, "the value is larger than copy_max_bytes")
            return
        payload = yield Command(self._client, ("DUMP", state.key), {"NEVER_DECODE": []})
        if payload is None or len(payload) > settings.copy_max_bytes:
            reason = "does not exist" if payload is None else "is larger than copy_max_bytes"
            yield from self._give_up(state, f"the original {reason}")
            return
        lives_ms = int(settings.max_staleness_ms - settings.clock_skew_ms)
        if ttl_ms >= 0:
            lives_ms = min(lives_ms, ttl_ms - int(settings.clock_skew_ms))
        if lives_ms <= 0:
            yield from self._give_up(state, "the original is about to expire")
            return
        yield from self._place_all(state, places, (version, str(at_ms + lives_ms)), payload)

    def _place_all(
        self, state: CopiedKey, places: list[int], when: tuple[str, str], payload: bytes
    ) -> Steps[None]:
        digest = hashlib.blake2b(payload, digest_size=16).hexdigest().encode()
        first = () if digest == state.digest else (payload,)
        answers = yield from self._place(state.key, places, (*when, digest), first)
        self.stats.renewed += 0 if first else sum(answer == 1 for answer in answers.values())
        again = [place for place, answer in answers.items() if answer == -1]
        if again:
            answers |= yield from self._place(state.key, again, (*when, digest), (payload,))
        written = places if first else again
        self.stats.restored += sum(answers.get(place) == 1 for place in written)
        voided = sum(answer == 0 for answer in answers.values())
        self.stats.voided += voided
        state.digest = digest
        state.copies = len(answers) - voided
        state.reason = "a write came in between" if voided else None
        if len(answers) < len(places):
            state.reason = "a copy's node does not answer"

    def _place(
        self, key: bytes, places: list[int], what: tuple[str, str, bytes], payload: tuple[bytes, ...]
    ) -> Steps[dict[int, int]]:
        """Renew or write copies; what came of it by place, without those whose node does not answer."""
        version, deadline_ms, digest = what
        asked = []
        for place in places:
            node = self._node_of(key, place)
            if node is not None:
                names = (self.copy_name(key, place), self._fence_name(key, place))
                line = ("EVAL", PLACE, 2, *names, version, digest, deadline_ms, self._keep_ms(), *payload)
                asked.append((place, node, Command(node.client, line)))
        replies = (yield Fan(tuple(command for _, _, command in asked))) if asked else []
        answers: dict[int, int] = {}
        for (place, node, command), reply in zip(asked, replies, strict=True):
            self._heard(node, reply)
            if is_connection_error(reply):
                continue
            if is_moved(reply):  # the client's own way finds it, and learns
                answers[place] = int((yield Command(self._client, command.args)))
            elif isinstance(reply, Exception):
                raise reply
            else:
                answers[place] = int(reply)
        if len(answers) < len(places):
            yield Relearn(self._client)
        return answers

    def _give_up(self, state: CopiedKey, reason: str) -> Steps[None]:
        """There must be no copies; reads go to the original."""
        had_copies, state.copies, state.reason = state.copies, 0, reason
        if had_copies:
            yield from self._void(state.key)


def _raise_unless_moved(replies: list[Reply]) -> None:
    for reply in replies:
        if isinstance(reply, Exception) and not is_moved(reply):
            raise reply


def _raise_first(replies: list[Reply]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _code(error: Exception) -> str:
    """The first word of a server's message: the rest may name keys."""
    return str(error).split(" ", 1)[0][:40]
