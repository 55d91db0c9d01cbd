"""Reads of hot keys go to replicas that are known to be fresh enough; writes to the primary.

Works with clients of a Cluster, of one server, and with what `Sentinel.master_for` makes. The replicas
are those a primary names itself, so ones added while running are found, and a promoted one is left
out after a failover.

**Bound.** A read answered by a replica sees every write acknowledged `max_lag_ms` before it, and every
write made through this object to that key (`read_your_writes`). `_replica_core.py` says how that is
known. Two reads may see time run backwards within the bound, from one replica to another. After a
failover that loses acknowledged writes, replicas have lost them as the primary has.

**Never** from a replica: keys not told hot, locks, commands that are not plain reads of one key.
Transactions and WATCH do not pass here: they are the client's.

**Cost.** One `ROLE` per interval to each primary that has hot keys and to each of its replicas, and
one connection pool per such replica.
"""

from collections.abc import Callable, Mapping
from typing import Any

from keyheat.clock import now_s
from keyheat.mitigate._commands import Client, Reply
from keyheat.mitigate._replica_core import ReplicaCore, ReplicaReadsSettings, ReplicaReadsStats
from keyheat.mitigate._ticked import AsyncTicked, Ticked
from keyheat.mitigate.steps import drive, drive_async

__all__ = ["AsyncReplicaReads", "ReplicaReads", "ReplicaReadsSettings", "ReplicaReadsStats"]


class ReplicaReads(Ticked[ReplicaCore]):
    """Reads from replicas, on a blocking client.

    Args:
        client: redis-py's or valkey-py's: Cluster, standalone, or `Sentinel.master_for`.
        settings: See `ReplicaReadsSettings`.
        is_lock: Says of a key whether it is a lock; locks are never read from replicas.
        clock: Seconds, for tests.
    """

    def __init__(
        self,
        client: Client,
        settings: ReplicaReadsSettings | None = None,
        *,
        is_lock: Callable[[bytes], bool] | None = None,
        clock: Callable[[], float] = now_s,
    ) -> None:
        core = ReplicaCore(client, settings or ReplicaReadsSettings(), clock, is_lock)
        super().__init__(core, core.settings.poll_interval_ms / 1000, "keyheat-replica-reads")

    def heat(self, key: bytes | str) -> bool:
        """Told that a key is hot; False for a lock, one of keyheat's own, or if `keys_max` are."""
        taken = self._core.heat(key)
        if taken:
            self._begin()
        return taken

    def cool(self, key: bytes | str) -> None:
        """Told that a key is hot no more."""
        self._core.cool(key)

    def read(self, *args: Any, **options: Any) -> Reply:
        """Run a read of one key where the policy says.

        Raises:
            UpstreamUnreachableError: The policy is `replica`, and none is fresh enough.
        """
        return drive(self._core.read_steps(args, options, enabled=self.enabled))

    def read_key(self, key: bytes, args: tuple[Any, ...], options: Mapping[str, Any]) -> Reply:
        """As `read`, of a key as the server sees it, whatever the application calls it by."""
        return drive(self._core.read_steps(args, options, enabled=self.enabled, key=key))

    def write(self, *args: Any) -> Reply:
        """Run a write; reads of its key through this object see it."""
        return drive(self._core.write_steps(args))

    def wrote(self, key: bytes | str) -> None:
        """To be called after a write made through the client itself."""
        self._core.wrote(key)

    def poll(self) -> None:
        """Do now what the thread does now and then."""
        with self._rounds:
            drive(self._core.poll_steps(enabled=self.enabled))

    def stats(self) -> ReplicaReadsStats:
        """Counts since the object was made."""
        return self._core.stats

    def close(self) -> None:
        """End the thread and close the connections to replicas; the client stays open."""
        self._ticker.stop()
        with self._rounds:
            drive(self._core.close_steps())

    def _round(self) -> None:
        self.poll()


class AsyncReplicaReads(AsyncTicked[ReplicaCore]):
    """The same on an asyncio client."""

    def __init__(
        self,
        client: Client,
        settings: ReplicaReadsSettings | None = None,
        *,
        is_lock: Callable[[bytes], bool] | None = None,
        clock: Callable[[], float] = now_s,
    ) -> None:
        core = ReplicaCore(client, settings or ReplicaReadsSettings(), clock, is_lock)
        super().__init__(core, core.settings.poll_interval_ms / 1000)

    def heat(self, key: bytes | str) -> bool:
        """As `ReplicaReads.heat`; in a running loop."""
        taken = self._core.heat(key)
        if taken:
            self._begin()
        return taken

    def cool(self, key: bytes | str) -> None:
        """As `ReplicaReads.cool`."""
        self._core.cool(key)

    async def read(self, *args: Any, **options: Any) -> Reply:
        """As `ReplicaReads.read`."""
        return await drive_async(self._core.read_steps(args, options, enabled=self.enabled))

    async def read_key(self, key: bytes, args: tuple[Any, ...], options: Mapping[str, Any]) -> Reply:
        """As `read`, of a key as the server sees it, whatever the application calls it by."""
        return await drive_async(self._core.read_steps(args, options, enabled=self.enabled, key=key))

    async def write(self, *args: Any) -> Reply:
        """As `ReplicaReads.write`."""
        return await drive_async(self._core.write_steps(args))

    def wrote(self, key: bytes | str) -> None:
        """As `ReplicaReads.wrote`."""
        self._core.wrote(key)

    async def poll(self) -> None:
        """As `ReplicaReads.poll`."""
        async with self._rounds:
            await drive_async(self._core.poll_steps(enabled=self.enabled))

    def stats(self) -> ReplicaReadsStats:
        """Counts since the object was made."""
        return self._core.stats

    async def aclose(self) -> None:
        """As `ReplicaReads.close`."""
        await self._ticker.stop()
        async with self._rounds:
            await drive_async(self._core.close_steps())

    async def _round(self) -> None:
        await self.poll()
