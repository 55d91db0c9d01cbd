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

import asyncio
import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from keyheat.clock import now_s
from keyheat.mitigate import _lifetime as lifetime
from keyheat.mitigate._drive import Client, Reply, adrive, drive
from keyheat.mitigate._replica_core import ReplicaCore, ReplicaReadsSettings, ReplicaReadsStats
from keyheat.mitigate._ticker import AsyncTicker, Ticker

__all__ = ["AsyncReplicaReads", "ReplicaReads", "ReplicaReadsSettings", "ReplicaReadsStats"]


class ReplicaReads:
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
        self.enabled = True
        self._client = client
        self._core = ReplicaCore(client, settings or ReplicaReadsSettings(), clock, is_lock)
        self._polling = threading.Lock()
        self._ticker = self._new_ticker()
        self._hook = lifetime.in_forked_child(self._forked)

    def heat(self, key: bytes | str) -> bool:
        """Told that a key is hot; False if it is not taken (a lock, or `keys_max` are)."""
        taken = self._core.heat(key)
        if taken:
            self._ticker.start()
            self._ticker.wake()
        return taken

    def cool(self, key: bytes | str) -> None:
        """Told that a key is hot no more."""
        self._core.cool(key)

    def read(self, *args: Any) -> Reply:
        """Run a read of one key where the policy says.

        Raises:
            UpstreamUnreachableError: The policy is `replica`, and none is fresh enough.
        """
        return drive(self._core.read_steps(args, enabled=self.enabled), self._client)

    def write(self, *args: Any) -> Reply:
        """Run a write; reads of its key through this object see it."""
        return drive(self._core.write_steps(args), self._client)

    def wrote(self, key: bytes | str) -> None:
        """To be called after a write made through the client itself."""
        self._core.wrote(key)

    def poll(self) -> None:
        """Do now what the thread does now and then."""
        with self._polling:
            drive(self._core.poll_steps(enabled=self.enabled), self._client)

    def stats(self) -> ReplicaReadsStats:
        """Counts since the object was made."""
        return self._core.stats

    def close(self) -> None:
        """End the thread and close the connections to replicas; the client stays open."""
        self._ticker.stop()
        with self._polling:
            drive(self._core.close_steps(), self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tick(self) -> None:
        with contextlib.suppress(Exception):  # without polls no replica is confirmed
            self.poll()

    def _forked(self) -> None:
        self._core.forget()
        self._polling = threading.Lock()
        self._ticker = self._new_ticker()

    def _new_ticker(self) -> Ticker:
        return Ticker(self._tick, self._core.settings.poll_interval_ms / 1000, "keyheat-replica-reads")


class AsyncReplicaReads:
    """The same on an asyncio client."""

    def __init__(
        self,
        client: Client,
        settings: ReplicaReadsSettings | None = None,
        *,
        is_lock: Callable[[bytes], bool] | None = None,
        clock: Callable[[], float] = now_s,
    ) -> None:
        self.enabled = True
        self._client = client
        self._core = ReplicaCore(client, settings or ReplicaReadsSettings(), clock, is_lock)
        self._polling = asyncio.Lock()
        self._ticker = self._new_ticker()
        self._hook = lifetime.in_forked_child(self._forked)

    def heat(self, key: bytes | str) -> bool:
        """As `ReplicaReads.heat`; in a running loop."""
        taken = self._core.heat(key)
        if taken:
            self._ticker.start()
            self._ticker.wake()
        return taken

    def cool(self, key: bytes | str) -> None:
        """As `ReplicaReads.cool`."""
        self._core.cool(key)

    async def read(self, *args: Any) -> Reply:
        """As `ReplicaReads.read`."""
        return await adrive(self._core.read_steps(args, enabled=self.enabled), self._client)

    async def write(self, *args: Any) -> Reply:
        """As `ReplicaReads.write`."""
        return await adrive(self._core.write_steps(args), self._client)

    def wrote(self, key: bytes | str) -> None:
        """As `ReplicaReads.wrote`."""
        self._core.wrote(key)

    async def poll(self) -> None:
        """As `ReplicaReads.poll`."""
        async with self._polling:
            await adrive(self._core.poll_steps(enabled=self.enabled), self._client)

    def stats(self) -> ReplicaReadsStats:
        """Counts since the object was made."""
        return self._core.stats

    async def aclose(self) -> None:
        """As `ReplicaReads.close`."""
        await self._ticker.stop()
        async with self._polling:
            await adrive(self._core.close_steps(), self._client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _tick(self) -> None:
        with contextlib.suppress(Exception):  # without polls no replica is confirmed
            await self.poll()

    def _forked(self) -> None:
        self._core.forget()
        self._polling = asyncio.Lock()
        self._ticker = self._new_ticker()

    def _new_ticker(self) -> AsyncTicker:
        return AsyncTicker(self._tick, self._core.settings.poll_interval_ms / 1000)
