"""Distributed lease around rebuilding a key: of all processes that miss it, one asks the source.

*Shape.* One script looks for the value and, if it is missing, takes the lease: a key beside the data key,
in its slot, holding a random token and expiring. The holder loads and fills by a second script that
compares the token, writes, gives the lease back and wakes the others. So a miss costs the holder two
commands, and each waiting process three: look, wait, look again.

*The lease key never becomes hot*: within a process the callers of a key are coalesced first, so there is
one contender per process and key, however many threads and tasks it has.

*Waking.* Those who wait block on a stream beside the key, to which the holder adds one entry, or poll; see
`lease_waiting.py`.

*Fencing.* A fill is refused when the token is not ours any more (the lease expired in a pause of this
process, or `invalidate` was called), or the data key changed since it was looked at. The holder's callers
get the loaded value all the same; it is only not stored.

*The holder crashes*: its lease expires after at most `lease_s`, and one of those who wait takes over. While
the loader runs the lease is renewed every third of `lease_s`, for at most `renew_max_s`: a loader that
hangs loses the lease in the end. *The load fails*: it fails for all who waited, with `LoadFailedError` in
other processes (polling ones take over instead); the next caller tries anew. *The holder is cancelled, or
is turned back*: another one takes over at once.

*The server fails* or refuses the scripts: fail open. The caller loads, under the limit of `shedder`, and
the value is not stored. `WRONGTYPE` passes through.

Bound: one load at a time over all processes while leases outlive their holders' pauses; an expired lease
or a server failure can make it two. Needs EVAL, EVALSHA and XREAD; keys under `prefix` are ours.

Source: Nishtala et al., "Scaling Memcache at Facebook" (NSDI 2013), leases; token and expiry as in the Redis
documentation's "Distributed Locks", single instance.
"""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, cast

from keyheat.clock import now_s
from keyheat.errors import TurnedBackError, WaitTimeoutError
from keyheat.mitigate._checks import (
    OnceLogger,
    Seconds,
    as_bytes,
    at_least,
    one_of,
    reserved_prefix,
    seconds,
    whole_at_least,
    within,
)
from keyheat.mitigate._commands import Client, Command, Reply, is_asyncio
from keyheat.mitigate._lifetime import in_forked_child
from keyheat.mitigate.coalescer import Coalescer
from keyheat.mitigate.failures import is_client_error, is_no_script, is_wrong_type
from keyheat.mitigate.lease_keys import LeaseKeys, keys_for
from keyheat.mitigate.lease_scripts import ACQUIRE, FILL, FOUND, INVALIDATE, OURS, RELEASE, RENEW, Script
from keyheat.mitigate.lease_waiting import LeaseWaiting
from keyheat.mitigate.own_keys import PREFIX
from keyheat.mitigate.renewal import Renewal, TaskRenewals, ThreadRenewals
from keyheat.mitigate.shedder import Shedder
from keyheat.mitigate.steps import Call, Steps, drive, drive_async

Storable = bytes | str | int | float

_WAKE_TTL_MS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSettings:
    """How leases are held and waited for.

    Attributes:
        lease_s: Seconds a lease lasts unless renewed: how long a crash of the holder is felt.
        renew_max_s: Seconds after which a load that still runs is not covered any more.
        wait_s: Seconds a caller waits for another process's load.
        on_timeout: Then: `load` under the shedder's limit, without storing, or `raise` WaitTimeoutError.
        pushes_max: Connections that may wait for a wake-up at once; beyond, waiters poll.
        prefix: What the keys beside the data keys begin with.

    Raises:
        ConfigError: A value is out of range; the message names it.
    """

    lease_s: float = 3.0
    renew_max_s: float = 60.0
    wait_s: float = 10.0
    on_timeout: Literal["load", "raise"] = "load"
    pushes_max: int = 16
    prefix: bytes = PREFIX

    def __post_init__(self) -> None:
        within("lease_s", self.lease_s, 0.05, 3600)
        at_least("renew_max_s", self.renew_max_s, self.lease_s)
        seconds("renew_max_s", self.renew_max_s)
        seconds("wait_s", self.wait_s)
        one_of("on_timeout", self.on_timeout, ("load", "raise"))
        whole_at_least("pushes_max", self.pushes_max, 0)
        reserved_prefix("prefix", self.prefix)


@dataclass(slots=True)
class LeaseStats:
    """What a lease object has seen; counted without a lock, so threads may lose one now and then.

    Attributes:
        acquired: Leases taken, each followed by a load.
        found: Callers that found the value when they came for the lease.
        filled: Values stored.
        fills_refused: Values not stored, the lease or the key being another's by then.
        waited: Callers that waited for another process, by wake-up or by polling.
        pushes: Waits for a wake-up.
        polls: Pauses between polls.
        timed_out: Callers whose waiting ended first.
        failed_open: Loads without a lease, the server being unusable.
    """

    acquired: int = 0
    found: int = 0
    filled: int = 0
    fills_refused: int = 0
    waited: int = 0
    pushes: int = 0
    polls: int = 0
    timed_out: int = 0
    failed_open: int = 0


class Loaded(NamedTuple):
    """What a load brought: the bytes to store, and for how long (0: not at all)."""

    raw: bytes
    ttl_ms: int


class Rebuilt(NamedTuple):
    """The value of a key, and whether another caller or process had stored it."""

    raw: bytes
    is_found: bool


class Lease:
    """Loads a missing key once over all processes; for a blocking client or an asyncio one.

    Set `enabled` to False while running and every caller loads, without looking at the server.

    Args:
        client: redis-py's or valkey-py's client, standalone or Cluster, blocking or asyncio.
        settings: How long leases last, and callers wait.
        coalescer: Brings the callers of this process together; by default one of its own.
        shedder: Limits the loads of this process; by default they are not limited.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        client: Client,
        settings: LeaseSettings | None = None,
        *,
        coalescer: Coalescer | None = None,
        shedder: Shedder | None = None,
        clock: Callable[[], float] = now_s,
    ) -> None:
        self._client = client
        self._settings = settings or LeaseSettings()
        budget_s = self._settings.wait_s + self._settings.renew_max_s
        self._coalescer = coalescer or Coalescer(wait_s=budget_s, on_timeout="raise")
        self._shedder = shedder
        self._clock = clock
        self._renewals: TaskRenewals | ThreadRenewals = (
            TaskRenewals() if is_asyncio(client) else ThreadRenewals()
        )
        self._waiting = LeaseWaiting(client, self._settings.pushes_max)
        self._said = OnceLogger("keyheat.mitigate.lease")
        self.enabled = True
        self._stats = LeaseStats()
        self.start_empty()
        self._fork_hook = in_forked_child(self.start_empty)

    def start_empty(self) -> None:
        """Forget what is under way; for a forked child."""
        self._waiting.start_empty()
        self._renewals.start_empty()

    def rebuild(self, key: bytes | str, load: Callable[[], Storable], *, ttl: Seconds) -> bytes:
        """The value under the key, loaded and stored if it is missing.

        Args:
            key: The data key.
            load: Asks the source; its result is stored as the client would store it.
            ttl: Seconds, or a timedelta, until the stored value expires.

        Returns:
            The value as bytes.

        Raises:
            LoadFailedError: Another process loaded the key, and failed.
            WaitTimeoutError: Another one did not end in time, and `on_timeout` is `raise`.
            ShedError: The shedder turned this load back.
        """
        return drive(self._coalesced(key, load, ttl))

    async def rebuild_async(
        self, key: bytes | str, load: Callable[[], Awaitable[Storable]], *, ttl: Seconds
    ) -> bytes:
        """The same with an asyncio client; see `rebuild`."""
        return await drive_async(self._coalesced(key, load, ttl))

    def invalidate(self, key: bytes | str) -> None:
        """Delete the value, and refuse the fill of whoever is loading it."""
        drive(self.invalidate_steps(as_bytes(key)))

    async def invalidate_async(self, key: bytes | str) -> None:
        """The same with an asyncio client; see `invalidate`."""
        await drive_async(self.invalidate_steps(as_bytes(key)))

    def stats(self) -> LeaseStats:
        """What it has seen so far."""
        return replace(self._stats, pushes=self._waiting.pushes, polls=self._waiting.polls)

    def invalidate_steps(self, key: bytes) -> Steps[None]:
        """The algorithm of `invalidate`."""
        self._coalescer.forget(key)
        yield from self._run(INVALIDATE, keys_for(key, self._settings.prefix), _WAKE_TTL_MS)

    def rebuild_steps(
        self,
        key: bytes,
        load: Callable[[], Steps[Loaded]],
        *,
        expected: bytes = b"",
        is_waiting: bool = True,
    ) -> Steps[Rebuilt | None]:
        """The algorithm, for one contender per process.

        Args:
            key: The data key.
            load: Asks the source.
            expected: How the value begins that is to be replaced; empty if the key was missing.
            is_waiting: Whether to wait while another process loads.

        Returns:
            The value, or None if another process loads it and `is_waiting` is off.
        """
        if not self.enabled:
            return Rebuilt((yield from self._limited(load)).raw, is_found=False)
        keys = keys_for(key, self._settings.prefix)
        token = secrets.token_hex(16).encode()
        until_s = self._clock() + self._settings.wait_s
        attempt = 0
        while True:
            reply = yield from self._acquire(keys, token, expected)
            if reply is None:
                return Rebuilt((yield from self._limited(load)).raw, is_found=False)
            if reply[0] == FOUND:
                self._stats.found += 1
                return Rebuilt(reply[1], is_found=True)
            if reply[0] == OURS:
                return (yield from self._hold(keys, token, load, expected))
            left_s = until_s - self._clock()
            if not is_waiting:
                return None
            if left_s <= 0:
                return (yield from self._stop_waiting(load))
            self._stats.waited += attempt == 0
            yield from self._waiting.steps(keys, min(left_s, reply[1] / 1000), attempt)
            attempt += 1

    @property
    def _lease_ms(self) -> int:
        return max(1, int(self._settings.lease_s * 1000))

    def _coalesced(self, key: bytes | str, load: Callable[[], object], ttl: Seconds) -> Steps[bytes]:
        ttl_ms = max(1, int(seconds("ttl", ttl) * 1000))
        name = as_bytes(key)

        def loading() -> Steps[Loaded]:
            return Loaded(stored_form((yield Call(load))), ttl_ms)

        def work() -> Steps[bytes]:
            rebuilt = yield from self.rebuild_steps(name, loading)
            return cast("Rebuilt", rebuilt).raw

        return (yield from self._coalescer.steps(name, work))

    def _hold(
        self, keys: LeaseKeys, token: bytes, load: Callable[[], Steps[Loaded]], expected: bytes
    ) -> Steps[Rebuilt]:
        self._stats.acquired += 1
        renewal = self._renewal(keys, token)
        try:
            loaded = yield from self._limited(load)
            renewal.end()
            yield from self._fill(keys, token, loaded, expected)
        except GeneratorExit:
            raise  # nothing may be awaited any more: the lease expires by itself
        except BaseException as error:
            renewal.end()
            is_source = isinstance(error, Exception) and not isinstance(error, TurnedBackError)
            outcome = f"failed:{type(error).__name__}" if is_source else "handed on"
            yield from self._release(keys, token, outcome.encode())
            raise
        finally:
            renewal.end()
        return Rebuilt(loaded.raw, is_found=False)

    def _renewal(self, keys: LeaseKeys, token: bytes) -> Renewal:
        def renew() -> Steps[bool]:
            return bool((yield from self._run(RENEW, keys, token, self._lease_ms)))

        renewal = Renewal(renew, self._settings.lease_s / 3, self._settings.renew_max_s)
        self._renewals.begin(renewal)
        return renewal

    def _fill(self, keys: LeaseKeys, token: bytes, loaded: Loaded, expected: bytes) -> Steps[None]:
        try:
            told = yield from self._run(FILL, keys, token, loaded.raw, loaded.ttl_ms, expected, _WAKE_TTL_MS)
        except Exception as error:
            if not is_client_error(error):
                raise
            self._said.warning("fill", "a loaded value could not be stored: %s", type(error).__name__)
            self._stats.fills_refused += 1
            yield from self._release(keys, token, b"handed on")
            return
        self._stats.filled += told == 1
        self._stats.fills_refused += told != 1

    def _release(self, keys: LeaseKeys, token: bytes, outcome: bytes) -> Steps[None]:
        try:
            yield from self._run(RELEASE, keys, token, outcome, _WAKE_TTL_MS)
        except Exception as error:
            if not is_client_error(error):
                raise
            self._said.warning("release", "a lease could not be given back: %s", type(error).__name__)

    def _acquire(self, keys: LeaseKeys, token: bytes, expected: bytes) -> Steps[Reply]:
        """The script's answer; None if there is none to be had, so that the caller fails open."""
        try:
            return (yield from self._run(ACQUIRE, keys, token, self._lease_ms, expected))
        except Exception as error:
            if not is_client_error(error) or is_wrong_type(error):
                raise
            kind = type(error).__name__
            self._said.warning("open", "no lease can be had (%s): every process loads by itself", kind)
        self._stats.failed_open += 1
        return None

    def _stop_waiting(self, load: Callable[[], Steps[Loaded]]) -> Steps[Rebuilt]:
        self._stats.timed_out += 1
        if self._settings.on_timeout == "raise":
            raise WaitTimeoutError(
                f"another process loads this key and did not end within {self._settings.wait_s:g} s"
            )
        return Rebuilt((yield from self._limited(load)).raw, is_found=False)

    def _limited(self, load: Callable[[], Steps[Loaded]]) -> Steps[Loaded]:
        if self._shedder is None:
            return (yield from load())
        slot = yield from self._shedder.enter_steps()
        try:
            loaded = yield from load()
        except BaseException as error:
            slot.leave(error)
            raise
        slot.leave()
        return loaded

    def _run(self, script: Script, keys: LeaseKeys, *arguments: bytes | int) -> Steps[Reply]:
        words = (len(keys), *keys, *arguments)
        options = {"NEVER_DECODE": True}
        try:
            return (yield Command(self._client, ("EVALSHA", script.sha, *words), options))
        except Exception as error:
            if not is_no_script(error):
                raise
        return (yield Command(self._client, ("EVAL", script.text, *words), options))


def stored_form(value: object) -> bytes:
    """A value as redis-py stores it.

    Raises:
        TypeError: redis-py would refuse it too.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value).encode()
    raise TypeError(f"a value of type {type(value).__name__} cannot be stored: bytes, str, int or float can")
