"""Where a protected client's commands go by plan: reads to copies or replicas, writes after voiding both.

Only a client whose rules ask for it has this; `routed` has its classes. Beyond what `Copies` and
`ReplicaReads` promise for what passes through them, here is made sure that this process sees its own
writes, whichever of its clients made them and by whatever command or pipeline:

* A key is read elsewhere only after it has been *known* to the process for as long as copies and replicas
  may be behind; so whatever was written before it was known is in them.
* While it is known, each write of it by any client of the deployment voids the copies, and tells the
  readers of replicas, after it was answered (or failed) and before the caller hears of it. Which keys are
  known is looked up then, for it may have become so while the write was under way.
* It stays known as long again after it has left the hot set, for somebody may still have copies.

Whatever goes wrong here is ours: the command goes where it would have gone without.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from keyheat._keyheat import Guard
from keyheat.client._engine import Binding
from keyheat.client.common import bare
from keyheat.clock import now_s
from keyheat.mitigate._commands import is_asyncio
from keyheat.mitigate._ticker import AsyncTicker, Ticker
from keyheat.mitigate.breaker import Permit
from keyheat.mitigate.copies import AsyncCopies, Copies, CopiesSettings, CopiesStats
from keyheat.mitigate.replica_reads import (
    AsyncReplicaReads,
    ReplicaReads,
    ReplicaReadsSettings,
    ReplicaReadsStats,
)

_TEND_S: Final = 0.5
_COPIES: Final = 1
_REPLICAS: Final = 2

_log = logging.getLogger("keyheat.client")


@dataclass(slots=True)
class Known:
    """A hot key whose reads may go elsewhere.

    Attributes:
        usable_s: From when.
        left_s: When it was first seen to be hot no more.
    """

    usable_s: float
    left_s: float | None = None


class Routes:
    """What blocking and asyncio clients share: which keys are known, and what becomes of them.

    Args:
        client: The protected client.
        guard: The protected client's.
        binding: Its engine, what its settings say, and what the process knows.
    """

    def __init__(self, client: Any, guard: Guard, binding: Binding) -> None:
        self.guard = guard
        self.copies: Any = None
        self.replicas: Any = None
        self._client = bare(client)
        self._binding = binding
        self._allowlist = binding.settings.allowlist
        self._nx_is_lock = binding.settings.nx_is_lock
        # A connection of one's own carries sessions, in which nobody else's commands may come up.
        is_session = getattr(client, "connection", None) is not None
        self._remedies = frozenset() if is_session else binding.routing & {"copies", "replica_reads"}
        self._heated: set[bytes] = set()
        self._behind_s = _behind_s(binding)
        self._is_told = False
        binding.add_routes(self)

    def rewritten(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The command to be sent, with a longer expiry if the allowlist says so."""
        if self._allowlist is None:
            return args
        return self._allowlist.rewrite(args, time.time(), nx_is_lock=self._nx_is_lock)

    def permit(self, args: tuple[Any, ...]) -> Permit | None:
        """Permission to send a command to its node; see `NodeBreakers.permit`."""
        breakers = self._binding.breakers
        return None if breakers is None else breakers.permit(self._client, self.guard, args)

    def way(self, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, bytes] | None:
        """`Copies` or `ReplicaReads`, and the key as the server sees it, for a read that goes there."""
        if not self._remedies or not self.guard.has_hot_keys or "target_nodes" in options:
            return None
        try:
            routed = self.guard.route(args)
            if routed is None or routed[0] or len(routed[1]) != 1:
                return None
            key, bits = routed[1][0]
            return self._way_of(key, bits) if bits else None
        except Exception as error:  # noqa: BLE001 - fail open
            self._failed(error)
            return None

    def written(self, commands: Iterable[tuple[Any, ...]]) -> list[bytes]:
        """The known keys that some commands may have written; the readers of replicas have been told."""
        if not self._binding.known and not self.guard.has_hot_keys:
            return []
        try:
            keys: dict[bytes, None] = {}
            for args in commands:
                keys |= dict.fromkeys(self._written_by(args))
            for each in self._binding.routes:
                routes = each()
                if routes is not None and routes.replicas is not None:
                    for key in keys:
                        routes.replicas.wrote(key)
            return list(keys)
        except Exception as error:  # noqa: BLE001 - fail open, and void too much rather than too little
            self._failed(error)
            return list(self._binding.known)

    def gone(self) -> list[bytes]:
        """Keys that this client has had copied or polled for, and the process knows no more."""
        now, known = now_s(), self._binding.known
        for key, state in list(known.items()):
            routed = self.guard.route((b"SET", key, b""))
            if routed is not None and routed[1] and routed[1][0][1]:
                state.left_s = None
            elif state.left_s is None:
                state.left_s = now
            elif now - state.left_s > self._behind_s:
                known.pop(key, None)
        return [key for key in list(self._heated) if key not in known]

    def start(self) -> None:
        """Have known keys looked after."""
        raise NotImplementedError

    def _written_by(self, args: tuple[Any, ...]) -> list[bytes]:
        routed = self.guard.route(args)
        if routed is None or not routed[0]:
            return []
        known = self._binding.known
        for key, bits in routed[1]:
            if bits:
                self._know(key)
        # One that names no key may have changed any.
        return [key for key, _ in routed[1] if key in known] if routed[1] else list(known)

    def _know(self, key: bytes) -> Known:
        known: Known | None = self._binding.known.get(key)
        if known is None:
            known = self._binding.known.setdefault(key, Known(now_s() + self._behind_s))
        self.start()
        return known

    def _way_of(self, key: bytes, bits: int) -> tuple[Any, bytes] | None:
        state = self._know(key)
        if key not in self._heated:
            ways = ((_COPIES, self.copies), (_REPLICAS, self.replicas))
            taken = [way.heat(key) for bit, way in ways if bits & bit and way is not None]
            if not any(taken):
                return None
            self._heated.add(key)
        if now_s() < state.usable_s:
            return None
        if bits & _COPIES and self.copies is not None and self.copies.state(key) is not None:
            return self.copies, key
        return (self.replicas, key) if bits & _REPLICAS and self.replicas is not None else None

    def _failed(self, error: Exception) -> None:
        if not self._is_told:
            self._is_told = True
            _log.warning("copies and replicas are not used: %s", type(error).__name__)


class SyncRoutes(Routes):
    """For a blocking client."""

    def __init__(self, client: Any, guard: Guard, binding: Binding) -> None:
        super().__init__(client, guard, binding)
        settings = settings_of(binding)
        if "copies" in self._remedies:
            self.copies = Copies(self._client, settings.copies)
        if "replica_reads" in self._remedies:
            self.replicas = ReplicaReads(self._client, settings.replica_reads)
        self._ticker = Ticker(self._tend, _TEND_S, "keyheat-routes")
        self._is_abandoned = False

    def send(self, args: tuple[Any, ...], options: dict[str, Any], plain: Callable[[], Any]) -> Any:
        """Send a command where it belongs; `plain` sends it as the client itself would."""
        way = self.way(args, options)
        if way is not None:
            return way[0].read_key(way[1], args, options)
        try:
            return plain()
        finally:
            self.wrote([args])

    def wrote(self, commands: Iterable[tuple[Any, ...]]) -> None:
        """To be called after commands, whatever their outcome, and before their replies are passed on."""
        keys = self.written(commands)
        if self.copies is not None:
            for key in keys:
                self.copies.void(key)

    def start(self) -> None:
        """As `Routes.start`."""
        self._ticker.start()

    def abandon(self) -> None:
        """The client is being collected: nothing is waited for; copies expire by themselves."""
        self._is_abandoned = True
        self._ticker.abandon()

    def close(self) -> None:
        """Delete this process's copies, close the connections to replicas."""
        if self._is_abandoned:
            return
        self._heated.clear()
        ways = [way for way in (self.copies, self.replicas) if way is not None]
        for end in (self._ticker.stop, *(way.close for way in ways)):
            with contextlib.suppress(Exception):  # the client is closed whatever becomes of them
                end()

    def _tend(self) -> None:
        with contextlib.suppress(Exception):  # looked at again the next time
            for key in self.gone():
                self._heated.discard(key)
                for way in (self.copies, self.replicas):
                    if way is not None:
                        way.cool(key)


class AioRoutes(Routes):
    """For an asyncio client.

    What waits belongs to one event loop: in another one, copies and readers of replicas are made anew.
    """

    def __init__(self, client: Any, guard: Guard, binding: Binding) -> None:
        super().__init__(client, guard, binding)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._voiding: set[asyncio.Task[None]] = set()
        self._ticker = AsyncTicker(self._tend, _TEND_S, self._end)

    async def send(
        self, args: tuple[Any, ...], options: dict[str, Any], plain: Callable[[], Awaitable[Any]]
    ) -> Any:
        """As `SyncRoutes.send`."""
        self._come_to(asyncio.get_running_loop())
        way = self.way(args, options)
        if way is not None:
            return await way[0].read_key(way[1], args, options)
        try:
            return await plain()
        finally:
            await self.wrote([args])

    async def wrote(self, commands: Iterable[tuple[Any, ...]]) -> None:
        """As `SyncRoutes.wrote`; goes on if its caller is cancelled."""
        self._come_to(asyncio.get_running_loop())
        keys = self.written(commands)
        if self.copies is not None and keys:
            task = asyncio.ensure_future(self._void(keys))
            self._voiding.add(task)
            task.add_done_callback(self._voiding.discard)
            await asyncio.shield(task)

    def start(self) -> None:
        """As `Routes.start`; in a running loop."""
        self._ticker.start()

    async def aclose(self) -> None:
        """As `SyncRoutes.close`."""
        if self._loop is not asyncio.get_running_loop():
            return  # what there is to close went with its loop
        await self._ticker.stop()
        await self._end()

    async def _end(self) -> None:
        """Also when the loop ends, as far as `asyncio.run` ends it."""
        self._heated.clear()
        for way in (self.copies, self.replicas):
            with contextlib.suppress(Exception):  # the client is closed whatever becomes of them
                if way is not None:
                    await way.aclose()

    def _come_to(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is self._loop or not self._remedies:
            return
        self._loop = loop
        settings = settings_of(self._binding)
        self._heated = set()
        self._voiding = set()
        self._ticker = AsyncTicker(self._tend, _TEND_S, self._end)
        if "copies" in self._remedies:
            self.copies = AsyncCopies(self._client, settings.copies)
        if "replica_reads" in self._remedies:
            self.replicas = AsyncReplicaReads(self._client, settings.replica_reads)

    async def _void(self, keys: list[bytes]) -> None:
        for key in keys:
            await self.copies.void(key)

    async def _tend(self) -> None:
        with contextlib.suppress(Exception):  # looked at again the next time
            for key in self.gone():
                self._heated.discard(key)
                if self.copies is not None:
                    await self.copies.cool(key)
                if self.replicas is not None:
                    self.replicas.cool(key)


@dataclass(frozen=True, slots=True)
class _Settings:
    copies: CopiesSettings
    replica_reads: ReplicaReadsSettings


def settings_of(binding: Binding) -> _Settings:
    """The settings of copies and replica reads, defaults filled in."""
    given = binding.settings
    return _Settings(given.copies or CopiesSettings(), given.replica_reads or ReplicaReadsSettings())


def _behind_s(binding: Binding) -> float:
    """By how much copies and replicas may be behind."""
    settings = settings_of(binding)
    copies_s = settings.copies.max_staleness_ms / 1000 if "copies" in binding.routing else 0.0
    replicas_s = settings.replica_reads.max_lag_ms / 1000 if "replica_reads" in binding.routing else 0.0
    return max(copies_s, replicas_s)


def routes_of(client: Any, guard: Guard, binding: Binding) -> Routes:
    """The routes of a protected client; the same for its lifetime."""
    found: Routes | None = client._keyheat_routes
    if found is None:
        made = AioRoutes if is_asyncio(client) else SyncRoutes
        return made(client, guard, binding)
    found.guard = guard
    return found


def figures(binding: Binding) -> dict[str, Any]:
    """What copies, replica reads and breakers of all clients of a deployment have done, in this process."""
    sums: dict[str, Any] = {name: {} for name in ("copies", "replica_reads") if name in binding.routing}
    empty = {"copies": CopiesStats(), "replica_reads": ReplicaReadsStats()}
    for each in binding.routes:
        routes = each()
        for name, way in (("copies", routes.copies), ("replica_reads", routes.replicas)) if routes else ():
            stats: Any = way.stats() if way is not None else empty[name]
            if name in sums:
                for field, value in asdict(stats).items():
                    sums[name][field] = sums[name].get(field, 0) + value
    if binding.breakers is not None:
        sums["breakers"] = binding.breakers.stats()
    return sums
