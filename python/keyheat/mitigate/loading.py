"""Get a value from the cache, or load it from the source: the whole of what guards both.

*The order of things*, for `get_or_load(key, loader)`:

1. The callers of this process who ask for the key now are brought together (`coalescer`); one goes on.
2. It asks the cache (`breaker`). A fresh value is the answer.
3. Nearly expired: one caller is elected by chance to refresh it in the background, the more likely the
   nearer the end and the longer loading took, so that a hot key never expires under load (XFetch). Stale,
   and within `stale_while_revalidate_s`: the same, certainly.
4. Missing, or too stale: under the `lease`, so that one process loads, and under the `shedder`, so that the
   source is not given more than it can do. The value is stored unless the key changed in the meantime.
5. Loading failed: the stale value, if it is within `stale_if_error_s`; else the error.
6. The cache failed: the process's own last good value, if a `local` store was given and has it; else the
   source, under the shedder's limit; else the error.

*What a caller gets* is what a hit gives, for a miss as well: values are encoded and decoded again, each
caller his own object. See `envelope.py` for how values lie on the server; a foreign plain value under the
key is given as GET gives it, and left alone.

*Invalidation* deletes the key and voids the loads under way, those of other processes if there is a lease:
they end, but are not stored, and callers who come later do not join them.

Bounds: a caller waits for another's load at most `wait_s`. Staleness of a value: 0 beyond its ttl unless a
stale window is set; with one, freshness is judged by the wall clocks of writer and reader, so their
difference adds to it. A value stored without a lease may be older than a concurrent write to the source.
At most `loads_max` loads and `refreshes_max` refreshes at once, per process.

Source: Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention" (PVLDB 2015).
Departure: the elected caller does not wait for the refresh, it is done in the background.
"""

import inspect
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeVar

from keyheat.clock import now_s
from keyheat.errors import CircuitOpenError, ConfigError
from keyheat.mitigate._checks import (
    OnceLogger,
    Seconds,
    as_bytes,
    at_least,
    one_of,
    seconds,
    whole_at_least,
    within,
)
from keyheat.mitigate._commands import Client, Command, Reply, is_asyncio
from keyheat.mitigate._lifetime import in_forked_child
from keyheat.mitigate.background import Background
from keyheat.mitigate.breaker import Breaker
from keyheat.mitigate.cached import Decorator, cached
from keyheat.mitigate.coalescer import Coalescer
from keyheat.mitigate.envelope import UNREADABLE, Entry, Json, Serializer, pack, parse, plain, unpack
from keyheat.mitigate.failures import is_client_error, is_node_failure
from keyheat.mitigate.lease import Lease, Loaded
from keyheat.mitigate.shedder import Shedder
from keyheat.mitigate.stale_store import StaleStore
from keyheat.mitigate.steps import Call, Steps, drive, drive_async

T = TypeVar("T")

_RELOOKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingSettings:
    """How values are loaded, kept and refreshed.

    Attributes:
        ttl_jitter: A ttl is longer or shorter by up to this share, so that keys do not expire together.
        negative_ttl_s: Seconds "there is none" (the loader returned None) is remembered; 0 for not at all.
        early_refresh_beta: How eagerly to refresh before the end; 1 is the paper's optimum, 0 is never.
            Needs a header, see `format`.
        stale_while_revalidate_s: Seconds past its ttl a value is served while it is refreshed.
        stale_if_error_s: Seconds past its ttl a value is served when it cannot be loaded.
        wait_s: Seconds a caller waits for another's load in this process.
        join_max_age_s: A caller joins only a load begun at most this long before; None for any.
        loads_max: Loads at once, if no shedder is given.
        loads_queue: Loads that may wait for their turn, if no shedder is given.
        refreshes_max: Refreshes in the background at once; further ones are left to later callers.
        format: `auto` stores bytes, str, int and float as the client would (callers get what GET gives)
            unless a stale window needs a header; `envelope` always writes one, and keeps types.
        serializer: For all other values.

    Raises:
        ConfigError: A value is out of range; the message names it.
    """

    ttl_jitter: float = 0.1
    negative_ttl_s: float = 1.0
    early_refresh_beta: float = 1.0
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    wait_s: float = 10.0
    join_max_age_s: float | None = None
    loads_max: int = 64
    loads_queue: int = 1024
    refreshes_max: int = 8
    format: Literal["auto", "envelope"] = "auto"
    serializer: Serializer = field(default_factory=Json)

    def __post_init__(self) -> None:
        within("ttl_jitter", self.ttl_jitter, 0, 0.9)
        at_least("early_refresh_beta", self.early_refresh_beta, 0)
        for name in ("negative_ttl_s", "stale_while_revalidate_s", "stale_if_error_s"):
            seconds(name, getattr(self, name), is_zero_accepted=True)
        seconds("wait_s", self.wait_s)
        if self.join_max_age_s is not None:
            seconds("join_max_age_s", self.join_max_age_s, is_zero_accepted=True)
        for name, least in (("loads_max", 1), ("loads_queue", 0), ("refreshes_max", 0)):
            whole_at_least(name, getattr(self, name), least)
        one_of("format", self.format, ("auto", "envelope"))

    @property
    def stale_s(self) -> float:
        """Seconds a value is kept on the server past its ttl."""
        return max(self.stale_while_revalidate_s, self.stale_if_error_s)


@dataclass(slots=True)
class LoadingStats:
    """What a loader has seen, counted where the callers of a process are already brought together.

    Counted without a lock: of two threads counting in the same instant one may be lost.

    Attributes:
        hits: Fresh values found.
        misses: Keys missing or too stale.
        loads: Calls of the user's loader.
        load_errors: Of those, failed ones.
        refreshes: Refreshes begun in the background.
        stale_served: Stale values served while refreshing.
        stale_on_error: Stale values served because loading failed.
        cache_down: Times the cache could not be asked.
        local_served: Values served from the local store then.
        fills_failed: Loaded values that could not be stored.
        unreadable: Values that could not be decoded, and were loaded anew.
    """

    hits: int = 0
    misses: int = 0
    loads: int = 0
    load_errors: int = 0
    refreshes: int = 0
    stale_served: int = 0
    stale_on_error: int = 0
    cache_down: int = 0
    local_served: int = 0
    fills_failed: int = 0
    unreadable: int = 0


@dataclass(slots=True, eq=False)
class _Job:
    """One call's wishes."""

    key: bytes
    load: Callable[[], object]
    ttl_s: float
    keeps_types: bool
    is_void: bool = False


class Loader:
    """Gets values from the cache, and loads those that are missing.

    A blocking client is used with `get_or_load`, an asyncio one with `get_or_load_async`.

    Args:
        client: redis-py's or valkey-py's client, standalone or Cluster, blocking or asyncio.
        settings: How values are loaded, kept and refreshed.
        coalescer: Brings the callers of this process together; by default one waiting `wait_s`.
        lease: Brings the processes together; without, each process loads by itself.
        shedder: Protects the source; by default one of `loads_max`.
        breaker: Guards the cache node; without, each call to a dead node takes the client's timeout.
        local: Last good values to answer from while the cache is down.
        clock: Seconds, monotonic.
        wall_clock: Seconds since 1970, comparable between hosts.
    """

    def __init__(  # noqa: PLR0913 - the remedies it is put together from, all by name
        self,
        client: Client,
        settings: LoadingSettings | None = None,
        *,
        coalescer: Coalescer | None = None,
        lease: Lease | None = None,
        shedder: Shedder | None = None,
        breaker: Breaker | None = None,
        local: StaleStore | None = None,
        clock: Callable[[], float] = now_s,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings or LoadingSettings()
        self.is_asyncio = is_asyncio(client)
        self._client = client
        self._coalescer = coalescer or Coalescer(wait_s=self.settings.wait_s, on_timeout="raise")
        self._lease = lease
        self._shedder = shedder or Shedder(
            self.settings.loads_max,
            queue=self.settings.loads_queue,
            queue_timeout_s=self.settings.wait_s,
        )
        self._breaker = breaker
        self._local = local
        self._clock = clock
        self._wall_clock = wall_clock
        self._said = OnceLogger("keyheat.mitigate.loading")
        self._background = Background(self.settings.refreshes_max)
        self._stats = LoadingStats()
        self.start_empty()
        self._fork_hook = in_forked_child(self.start_empty)

    def start_empty(self) -> None:
        """Forget what is under way; for a forked child."""
        self._lock = threading.RLock()
        self._jobs: dict[bytes, list[_Job]] = {}  # loads under way, to be voided by an invalidation
        self._refreshing: set[bytes] = set()
        self._background.start_empty()

    def get_or_load(self, key: bytes | str, loader: Callable[[], object], *, ttl: Seconds) -> object:
        """The value under the key, loaded and stored if it is missing.

        Args:
            key: The data key.
            loader: Asks the source; None means there is no such thing, see `negative_ttl_s`.
            ttl: Seconds, or a timedelta, for which the value is fresh, before jitter.

        Returns:
            What a hit gives: the value loaded, or with `format="auto"` what GET gives for a plain value.

        Raises:
            TurnedBackError: Too many loads, or another's load took too long or failed.
            Exception: What the loader raised; the client's answers other than failures of the node.
        """
        return drive(self.get_steps(key, loader, ttl))

    async def get_or_load_async(
        self, key: bytes | str, loader: Callable[[], Awaitable[object] | object], *, ttl: Seconds
    ) -> object:
        """The same with an asyncio client; the loader may be a coroutine function. See `get_or_load`."""
        return await drive_async(self.get_steps(key, loader, ttl))

    def invalidate(self, key: bytes | str) -> None:
        """Delete the value, and void the loads under way; a failure of the server passes through."""
        drive(self.invalidate_steps(key))

    async def invalidate_async(self, key: bytes | str) -> None:
        """The same with an asyncio client; see `invalidate`."""
        await drive_async(self.invalidate_steps(key))

    def refresh(self, key: bytes | str, loader: Callable[[], object], *, ttl: Seconds) -> object:
        """Load and store the value now, whatever is there; returns it as `get_or_load` does."""
        return drive(self.refresh_steps(key, loader, ttl))

    async def refresh_async(
        self, key: bytes | str, loader: Callable[[], Awaitable[object] | object], *, ttl: Seconds
    ) -> object:
        """The same with an asyncio client; see `refresh`."""
        return await drive_async(self.refresh_steps(key, loader, ttl))

    def cached(self, template: str, *, ttl: Seconds) -> Decorator:
        """A decorator that keeps a function's results under `template`, filled from its arguments.

        Args:
            template: Such as `"item:{id}"`, or `"item:{item.id}:{lang}"`.
            ttl: Seconds, or a timedelta, for which a result is fresh.

        Returns:
            The decorator; see `keyheat.mitigate.cached`.
        """
        return cached(self, template, ttl=ttl)

    def stats(self) -> LoadingStats:
        """What it has seen so far."""
        return LoadingStats(**asdict(self._stats))

    # ------------------------------------------------------------ the algorithm

    def get_steps(
        self, key: bytes | str, load: Callable[[], object], ttl: Seconds, *, keeps_types: bool = False
    ) -> Steps[object]:
        """The algorithm of `get_or_load`; with `keeps_types`, plain values are not written."""
        job = self._job(key, load, ttl, keeps_types=keeps_types)
        raw = yield from self._coalescer.steps(
            ("get", job.key), lambda: self._look(job), max_age_s=self.settings.join_max_age_s
        )
        return (yield from self._decoded(job, raw))

    def refresh_steps(
        self, key: bytes | str, load: Callable[[], object], ttl: Seconds, *, keeps_types: bool = False
    ) -> Steps[object]:
        """The algorithm of `refresh`."""
        job = self._job(key, load, ttl, keeps_types=keeps_types)
        raw = yield from self._load_and_store(job)
        return self._decode(raw)

    def invalidate_steps(self, key: bytes | str) -> Steps[None]:
        """The algorithm of `invalidate`."""
        name = as_bytes(key)
        # Before the command, so that no load stores behind it; after, for those that began meanwhile.
        self._void(name)
        if self._lease is not None:
            yield from self._lease.invalidate_steps(name)
        else:
            yield Command(self._client, ("DEL", name))
        self._void(name)

    def _job(self, key: bytes | str, load: Callable[[], object], ttl: Seconds, *, keeps_types: bool) -> _Job:
        keeps = keeps_types or self.settings.format == "envelope" or self.settings.stale_s > 0
        return _Job(as_bytes(key), load, seconds("ttl", ttl), keeps)

    def _look(self, job: _Job) -> Steps[bytes]:
        try:
            raw = yield from self._ask("GET", job.key, keys=[job.key], NEVER_DECODE=True)
        except Exception as error:
            if not (isinstance(error, CircuitOpenError) or is_node_failure(error)):
                raise
            self._said.warning("down", "the cache cannot be asked: %s", type(error).__name__)
            raw = error
        if isinstance(raw, Exception):
            return (yield from self._without_cache(job))
        if raw is None:
            return (yield from self._rebuilt(job, b""))
        if self._local is not None:
            self._local.put(job.key, raw)
        entry = parse(raw)
        if entry is None:
            self._stats.hits += 1
            return bytes(raw)
        return (yield from self._judged(job, raw, entry))

    def _judged(self, job: _Job, raw: bytes, entry: Entry) -> Steps[bytes]:
        """The answer when there is a value with a header: fresh, stale, or in need of a load."""
        past_s = self._past_s(entry)
        if past_s < 0:
            self._stats.hits += 1
            if self._is_elected(entry):
                self._refresh_soon(job, entry.mark)
            return raw
        if past_s < self.settings.stale_while_revalidate_s:
            self._stats.stale_served += 1
            self._refresh_soon(job, entry.mark)
            return raw
        try:
            return (yield from self._rebuilt(job, entry.mark))
        except Exception:
            if past_s >= self.settings.stale_if_error_s:
                raise
            self._stats.stale_on_error += 1
            return raw

    def _is_elected(self, entry: Entry) -> bool:
        ahead_s = entry.load_s * self.settings.early_refresh_beta * -math.log(1.0 - random.random())
        return ahead_s > 0 and self._wall_clock() + ahead_s >= entry.fresh_until_s

    def _without_cache(self, job: _Job) -> Steps[bytes]:
        self._stats.cache_down += 1
        raw = self._local.get(job.key) if self._local is not None else None
        if raw is not None:
            self._stats.local_served += 1
            return raw
        return (yield from self._coalescer.steps(("source", job.key), lambda: self._raw_of_source(job)))

    def _rebuilt(self, job: _Job, mark: bytes) -> Steps[bytes]:
        """Load the key, together with whoever of this process is loading it."""
        self._stats.misses += 1
        raw: bytes | None = None
        while raw is None:  # a refresh that was joined may have been left to another process
            raw = yield from self._coalescer.steps(
                ("load", job.key),
                lambda: self._rebuild(job, mark, is_waiting=True),
                max_age_s=self.settings.join_max_age_s,
            )
        return raw

    def _rebuild(self, job: _Job, mark: bytes, *, is_waiting: bool) -> Steps[bytes | None]:
        """Load and store; None if another process is loading and this caller does not wait."""
        if self._lease is None:
            return (yield from self._load_and_store(job))
        for _ in range(_RELOOKS):
            rebuilt = yield from self._lease.rebuild_steps(
                job.key, lambda: self._source(job), expected=mark, is_waiting=is_waiting
            )
            if rebuilt is None:
                return None
            entry = parse(rebuilt.raw) if rebuilt.is_found else None
            if entry is None or self._past_s(entry) < 0:
                return rebuilt.raw
            mark = entry.mark
        return (yield from self._load_and_store(job))

    def _past_s(self, entry: Entry) -> float:
        """How long ago the value ceased to be fresh; below 0 if it is fresh."""
        if entry.kind == UNREADABLE:
            return math.inf
        if not entry.stale_s:
            return -math.inf  # the server's expiry is exact, and needs no clock of ours
        return self._wall_clock() - entry.fresh_until_s

    def _refresh_soon(self, job: _Job, mark: bytes) -> None:
        with self._lock:
            if job.key in self._refreshing or self._coalescer.is_loading(("load", job.key)):
                return
            self._refreshing.add(job.key)
        if self.is_asyncio:
            has_begun = self._background.start_task(lambda: drive_async(self._refreshed(job, mark)))
        else:
            has_begun = self._background.start_thread(lambda: drive(self._refreshed(job, mark)))
        if has_begun:
            self._stats.refreshes += 1
        else:
            self._refreshing.discard(job.key)

    def _refreshed(self, job: _Job, mark: bytes) -> Steps[None]:
        try:
            yield from self._coalescer.steps(
                ("load", job.key), lambda: self._rebuild(job, mark, is_waiting=False)
            )
        except Exception as error:  # noqa: BLE001 - nobody waits for it; what is at hand is still served
            self._said.warning("refresh", "a refresh failed: %s", type(error).__name__)
        finally:
            self._refreshing.discard(job.key)

    # ------------------------------------------------------------ the source, and storing

    def _load_and_store(self, job: _Job) -> Steps[bytes]:
        with self._lock:
            self._jobs.setdefault(job.key, []).append(job)
        try:
            loaded = yield from self._source(job)
            if loaded.ttl_ms and not job.is_void:
                yield from self._store(job.key, loaded)
        finally:
            with self._lock:
                under_way = self._jobs.get(job.key, [])
                if job in under_way:
                    under_way.remove(job)
                if not under_way:
                    self._jobs.pop(job.key, None)
        return loaded.raw

    def _raw_of_source(self, job: _Job) -> Steps[bytes]:
        return (yield from self._source(job)).raw

    def _source(self, job: _Job) -> Steps[Loaded]:
        slot = yield from self._shedder.enter_steps()
        began_s = self._clock()
        self._stats.loads += 1
        try:
            value = yield Call(job.load)
        except BaseException as error:
            self._stats.load_errors += isinstance(error, Exception)
            slot.leave(error)
            raise
        slot.leave()
        return self._packed(job, value, self._clock() - began_s)

    def _packed(self, job: _Job, value: object, load_s: float) -> Loaded:
        if inspect.iscoroutine(value):
            value.close()
            raise ConfigError(
                "the loader is a coroutine function: use the asyncio client and get_or_load_async"
            )
        settings = self.settings
        ttl_s, stale_s = job.ttl_s, settings.stale_s
        if value is None:
            ttl_s, stale_s = settings.negative_ttl_s, 0.0
        ttl_s *= 1.0 + settings.ttl_jitter * (2.0 * random.random() - 1.0)
        raw = None if job.keeps_types else plain(value)
        if raw is None:
            until_s = self._wall_clock() + ttl_s
            raw = pack(value, settings.serializer, fresh_until_s=until_s, stale_s=stale_s, load_s=load_s)
        return Loaded(raw, max(1, int((ttl_s + stale_s) * 1000)) if ttl_s else 0)

    def _store(self, key: bytes, loaded: Loaded) -> Steps[None]:
        try:
            yield from self._ask("SET", key, loaded.raw, "PX", loaded.ttl_ms)
        except Exception as error:
            if not (isinstance(error, CircuitOpenError) or is_client_error(error)):
                raise
            self._stats.fills_failed += 1
            self._said.warning("fill", "a loaded value could not be stored: %s", type(error).__name__)

    def _ask(self, *words: object, **options: object) -> Steps[Reply]:
        """One command to the cache, through the breaker."""
        permit = self._breaker.acquire() if self._breaker is not None else None
        try:
            reply = yield Command(self._client, words, options)
        except BaseException as error:
            if permit is not None:
                permit.failed(error)
            raise
        if permit is not None:
            permit.done()
        return reply

    def _void(self, key: bytes) -> None:
        with self._lock:
            for job in self._jobs.pop(key, ()):
                job.is_void = True
        for purpose in ("get", "load", "source"):
            self._coalescer.forget((purpose, key))
        if self._local is not None:
            self._local.forget(key)

    # ------------------------------------------------------------ decoding

    def _decoded(self, job: _Job, raw: bytes) -> Steps[object]:
        try:
            return self._decode(raw)
        except Exception as error:  # noqa: BLE001 - whatever a serializer raises at bytes not its own
            self._stats.unreadable += 1
            self._said.warning("unreadable", "a value cannot be read: %s", type(error).__name__)
        raw = yield from self._coalescer.steps(("anew", job.key), lambda: self._load_and_store(job))
        return self._decode(raw)

    def _decode(self, raw: bytes) -> object:
        entry = parse(raw)
        if entry is not None:
            return unpack(entry, self.settings.serializer)
        encoder = self._client.get_encoder()
        return encoder.decode(raw) if encoder.decode_responses else raw
