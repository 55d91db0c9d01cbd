"""What is done about a hot key; each remedy works alone, without detection and without the others."""

from keyheat._keyheat import LocalCache
from keyheat.mitigate.allowlist import Allowlist, Entity
from keyheat.mitigate.breaker import Breaker, BreakerSettings
from keyheat.mitigate.coalescer import Coalescer
from keyheat.mitigate.copies import AsyncCopies, Copies, CopiesSettings
from keyheat.mitigate.hot_counter import AsyncHotCounter, CounterSettings, HotCounter
from keyheat.mitigate.last_write import AsyncLastWrite, LastWrite, LastWriteSettings
from keyheat.mitigate.lease import Lease, LeaseSettings
from keyheat.mitigate.loading import Loader, LoadingSettings
from keyheat.mitigate.lock_evidence import LockEvidence
from keyheat.mitigate.lock_relief import LockRelief
from keyheat.mitigate.replica_reads import AsyncReplicaReads, ReplicaReads, ReplicaReadsSettings
from keyheat.mitigate.shedder import Shedder
from keyheat.mitigate.stale_store import StaleStore

__all__ = [
    "Allowlist",
    "AsyncCopies",
    "AsyncHotCounter",
    "AsyncLastWrite",
    "AsyncReplicaReads",
    "Breaker",
    "BreakerSettings",
    "Coalescer",
    "Copies",
    "CopiesSettings",
    "CounterSettings",
    "Entity",
    "HotCounter",
    "LastWrite",
    "LastWriteSettings",
    "Lease",
    "LeaseSettings",
    "Loader",
    "LoadingSettings",
    "LocalCache",
    "LockEvidence",
    "LockRelief",
    "ReplicaReads",
    "ReplicaReadsSettings",
    "Shedder",
    "StaleStore",
]
