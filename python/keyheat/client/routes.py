"""Where a protected client's commands go by plan: reads to copies or replicas, writes after voiding both.

Only a client whose rules ask for it has this; `routed` has its classes. Beyond what `Copies` and
`ReplicaReads` promise for what passes through them, here is made sure that this process sees its own
writes, whichever of its clients made them and by whatever command or pipeline:

* A key is read elsewhere only after it has been known here for as long as copies and replicas may be
  behind; so whatever was written before it was known is in them.
* While it is known each write of it voids the copies before the caller sees the reply, and each client
  of this deployment is told.
* It stays known as long again after it has left the hot set, for somebody may still have copies.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from keyheat._keyheat import Guard
from keyheat.client._engine import Binding
from keyheat.client.common import bare
from keyheat.clock import now_s
from keyheat.mitigate import _lifetime as lifetime
from keyheat.mitigate._commands import is_asyncio
from keyheat.mitigate._ticker import AsyncTicker, Ticker
from keyheat.mitigate.breaker import Permit
from keyheat.mitigate.copies import AsyncCopies, Copies, CopiesSettings
from keyheat.mitigate.replica_reads import AsyncReplicaReads, ReplicaReads, ReplicaReadsSettings

_TEND_S: Final = 0.5
_COPIES: Final = 1
_REPLICAS: Final = 2


@dataclass(slots=True)
class _Known:
    """A hot key whose reads may go elsewhere.

    Attributes:
        bits: Where its reads may go.
        usable_s: From when.
        left_s: When it was first seen to be hot no more.
    """

    bits: int
    usable_s: float
    left_s: float | None = None


class Routes:
    """What blocking and asyncio clients share: which keys are known, and what becomes of them.

    Args:
        client: What sends the commands of copies and polls: neither counted nor routed.
        guard: The protected client's.
        binding: Its engine, and what its settings say.
        copies: Copies on that client, if a plan has them.
        replicas: Reads from replicas on that client, if a plan has them.
    """

    def __init__(self, client: Any, guard: Guard, binding: Binding, copies: Any, replicas: Any) -> None:
        self.guard = guard
        self._client = client
        self.copies = copies
        self.replicas = replicas
        self.known: dict[bytes, _Known] = {}
        self._binding = binding
        self._allowlist = binding.settings.allowlist
        copies_s = settings_of(binding).copies.max_staleness_ms / 1000 if copies is not None else 0.0
        replicas_s = settings_of(binding).replica_reads.max_lag_ms / 1000 if replicas is not None else 0.0
        self._behind_s = max(copies_s, replicas_s)
        binding.routes.add(self)
        self._hook = lifetime.in_forked_child(self._forked)

    def rewritten(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The command to be sent, with a longer expiry if the allowlist says so."""
        return args if self._allowlist is None else self._allowlist.rewrite(args, time.time())

    def permit(self, args: tuple[Any, ...]) -> Permit | None:
        """Permission to send a command to its node; see `NodeBreakers.permit`."""
        breakers = self._binding.breakers
        return None if breakers is None else breakers.permit(self._client, self.guard, args)

    def elsewhere(self, args: tuple[Any, ...]) -> tuple[bool, Any, list[bytes]]:
        """What is to be done about a command.

        Returns:
            Whether it may write; `Copies` or `ReplicaReads` if it is a read that goes there; and the keys
            whose copies a write has to void.
        """
        if not self.known and not self.guard.has_hot_keys:
            return False, None, []
        routed = self.guard.route(args)
        if routed is None:
            return False, None, []
        is_write, keys = routed
        if not is_write:
            return False, self._way_of(*keys[0]) if len(keys) == 1 else None, []
        for key, bits in keys:
            if bits:
                self._meet(key, bits)
        # One that names no key may have changed any.
        written = [key for key, _ in keys if key in self.known] if keys else list(self.known)
        return True, None, written

    def written_by(self, commands: Iterable[tuple[Any, ...]]) -> list[bytes]:
        """The known keys that some commands may have written."""
        return list(dict.fromkeys(key for args in commands for key in self.elsewhere(args)[2]))

    def tell(self, keys: list[bytes]) -> None:
        """Tell each client of this deployment, in this process, that keys were written."""
        for routes in list(self._binding.routes):
            if routes.replicas is not None:
                for key in keys:
                    routes.replicas.wrote(key)

    def gone(self) -> list[bytes]:
        """Known keys that have not been hot for long enough to be forgotten."""
        now, gone = now_s(), []
        for key, state in list(self.known.items()):
            routed = self.guard.route((b"SET", key, b""))
            if routed is not None and routed[1] and routed[1][0][1]:
                state.left_s = None
            elif state.left_s is None:
                state.left_s = now
            elif now - state.left_s > self._behind_s:
                gone.append(key)
        return gone

    def start(self) -> None:
        """Have known keys looked after."""
        raise NotImplementedError

    def _forked(self) -> None:
        self.known = {}

    def _meet(self, key: bytes, bits: int) -> _Known | None:
        state = self.known.get(key)
        if state is None or bits & ~state.bits:
            ways = ((_COPIES, self.copies), (_REPLICAS, self.replicas))
            taken = [way.heat(key) for bit, way in ways if bits & bit and way is not None]
            if not any(taken):
                return state
            state = self.known[key] = _Known(bits, now_s() + self._behind_s)
            self.start()
        return state

    def _way_of(self, key: bytes, bits: int) -> Any:
        if not bits:
            return None
        state = self._meet(key, bits)
        if state is None or now_s() < state.usable_s:
            return None
        if bits & _COPIES and self.copies is not None and self.copies.state(key) is not None:
            return self.copies
        return self.replicas if bits & _REPLICAS else None


class SyncRoutes(Routes):
    """For a blocking client."""

    def __init__(self, client: Any, guard: Guard, binding: Binding) -> None:
        settings = settings_of(binding)
        copies = Copies(client, settings.copies) if "copies" in binding.routing else None
        replicas = (
            ReplicaReads(client, settings.replica_reads) if "replica_reads" in binding.routing else None
        )
        super().__init__(client, guard, binding, copies, replicas)
        self._ticker = Ticker(self._tend, _TEND_S, "keyheat-routes")

    def send(self, args: tuple[Any, ...], options: dict[str, Any], plain: Callable[[], Any]) -> Any:
        """Send a command where it belongs; `plain` sends it as the client itself would."""
        is_write, way, keys = self.elsewhere(args)
        if way is not None:
            return way.read(*args, **options)
        if not is_write:
            return plain()
        try:
            return plain()
        finally:
            self.wrote(keys)

    def wrote(self, keys: list[bytes]) -> None:
        """To be called after a write, whatever its outcome, and before its reply is passed on."""
        self.tell(keys)
        if self.copies is not None:
            for key in keys:
                self.copies.invalidate(key)

    def start(self) -> None:
        """As `Routes.start`."""
        self._ticker.start()

    def close(self) -> None:
        """Delete this process's copies, close the connections to replicas."""
        self._ticker.stop()
        self.known.clear()
        for way in (self.copies, self.replicas):
            if way is not None:
                way.close()

    def _tend(self) -> None:
        with contextlib.suppress(Exception):  # looked at again the next time
            for key in self.gone():
                self.known.pop(key, None)
                for way in (self.copies, self.replicas):
                    if way is not None:
                        way.cool(key)


class AioRoutes(Routes):
    """For an asyncio client."""

    def __init__(self, client: Any, guard: Guard, binding: Binding) -> None:
        settings = settings_of(binding)
        copies = AsyncCopies(client, settings.copies) if "copies" in binding.routing else None
        replicas = (
            AsyncReplicaReads(client, settings.replica_reads) if "replica_reads" in binding.routing else None
        )
        super().__init__(client, guard, binding, copies, replicas)
        self._ticker = AsyncTicker(self._tend, _TEND_S)
        self._voiding: set[asyncio.Task[None]] = set()

    async def send(
        self, args: tuple[Any, ...], options: dict[str, Any], plain: Callable[[], Awaitable[Any]]
    ) -> Any:
        """As `SyncRoutes.send`."""
        is_write, way, keys = self.elsewhere(args)
        if way is not None:
            return await way.read(*args, **options)
        if not is_write:
            return await plain()
        try:
            return await plain()
        finally:
            await self.wrote(keys)

    async def wrote(self, keys: list[bytes]) -> None:
        """As `SyncRoutes.wrote`; goes on if its caller is cancelled."""
        self.tell(keys)
        if self.copies is not None and keys:
            task = asyncio.ensure_future(self._void(keys))
            self._voiding.add(task)
            task.add_done_callback(self._voiding.discard)
            await asyncio.shield(task)

    async def _void(self, keys: list[bytes]) -> None:
        for key in keys:
            await self.copies.invalidate(key)

    def start(self) -> None:
        """As `Routes.start`; in a running loop."""
        self._ticker.start()

    async def aclose(self) -> None:
        """As `SyncRoutes.close`."""
        await self._ticker.stop()
        self.known.clear()
        for way in (self.copies, self.replicas):
            if way is not None:
                await way.aclose()

    async def _tend(self) -> None:
        with contextlib.suppress(Exception):  # looked at again the next time
            for key in self.gone():
                self.known.pop(key, None)
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


def routes_of(client: Any, guard: Guard, binding: Binding) -> Routes:
    """The routes of a protected client; the same for its lifetime."""
    found: Routes | None = client._keyheat_routes
    if found is None:
        made = AioRoutes if is_asyncio(client) else SyncRoutes
        return made(bare(client), guard, binding)
    found.guard = guard
    return found


def figures(binding: Binding) -> dict[str, Any]:
    """What copies, replica reads and breakers of all clients of a deployment have done, in this process."""
    sums: dict[str, Any] = {}
    for routes in list(binding.routes):
        for name, way in (("copies", routes.copies), ("replica_reads", routes.replicas)):
            if way is None:
                continue
            figures = sums.setdefault(name, {})
            for field, value in asdict(way.stats()).items():
                figures[field] = figures.get(field, 0) + value
    if binding.breakers is not None:
        sums["breakers"] = binding.breakers.stats()
    return sums
