"""keyheat finds the hot keys of any Redis or Valkey deployment and makes them harmless."""

import importlib
from typing import TYPE_CHECKING, Any

from keyheat.errors import KeyheatError
from keyheat.model import Access, HotKey, HotSet

if TYPE_CHECKING:
    from keyheat.client import ClientSettings, protect
    from keyheat.mitigate import (
        Allowlist,
        AsyncCopies,
        AsyncHotCounter,
        AsyncLastWrite,
        AsyncReplicaReads,
        Breaker,
        BreakerSettings,
        Coalescer,
        Copies,
        CopiesSettings,
        CounterSettings,
        Entity,
        HotCounter,
        LastWrite,
        LastWriteSettings,
        Lease,
        LeaseSettings,
        Loader,
        LoadingSettings,
        LocalCache,
        LockEvidence,
        LockRelief,
        ReplicaReads,
        ReplicaReadsSettings,
        Shedder,
        StaleStore,
    )

__all__ = [
    "Access",
    "Allowlist",
    "AsyncCopies",
    "AsyncHotCounter",
    "AsyncLastWrite",
    "AsyncReplicaReads",
    "Breaker",
    "BreakerSettings",
    "ClientSettings",
    "Coalescer",
    "Copies",
    "CopiesSettings",
    "CounterSettings",
    "Entity",
    "HotCounter",
    "HotKey",
    "HotSet",
    "KeyheatError",
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
    "protect",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever it is there
    """The client and the remedies: imported when one is asked for, as the command line needs neither."""
    room = "keyheat.client" if name in {"ClientSettings", "protect"} else "keyheat.mitigate"
    found = importlib.import_module(room)
    if name in found.__all__:
        return getattr(found, name)
    raise AttributeError(f"module 'keyheat' has no attribute {name!r}")
