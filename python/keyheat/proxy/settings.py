"""The proxy's settings, checked before anything starts.

The native module checks again and has the last word; these models are where a user's mistake is met
first, with the file, the key and the accepted values in the message.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from keyheat.detect.rules import Rule
from keyheat.proxy.url import UpstreamUrl

# A heartbeat several times within the bound must still be possible.
_LEAST_STALENESS_MS: Final = 5
# Replicas are asked how far they are ten times a second.
_LEAST_LAG_MS: Final = 50


def _is_staleness(value: int) -> int:
    if 0 < value < _LEAST_STALENESS_MS:
        raise ValueError("accepted: 0 (no local answers), or 5 to 600000")
    return value


def _is_lag(value: int) -> int:
    if 0 < value < _LEAST_LAG_MS:
        raise ValueError("accepted: 0 (no bound), or 50 to 600000")
    return value


def _is_short_enough(path: Path | None) -> Path | None:
    # The system's limit is 107 bytes; while it is being made the socket has a longer name.
    if path is not None and len(str(path.absolute()).encode()) > 95:
        raise ValueError("accepted: a path of at most 95 bytes")
    return path


class ProxySettings(BaseModel):
    """Everything `keyheat up` can be told; what is None is left to the native module's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    upstream: Any
    listen: str = "127.0.0.1:6380"
    unix_socket: Annotated[Path | None, AfterValidator(_is_short_enough)] = None
    unix_socket_mode: Annotated[str, Field(pattern="^[1-7][0-7]{2}$")] = "600"
    http: str | None = "127.0.0.1:6381"
    shards: Annotated[int, Field(ge=0, le=1024)] = 0
    max_staleness_ms: Annotated[int, Field(ge=0, le=600_000), AfterValidator(_is_staleness)] = 100
    local_cache: bool = True
    cache_bytes: Annotated[int, Field(gt=0)] | None = None
    cache_value_max_bytes: Annotated[int, Field(gt=0)] | None = None
    counting: bool = True
    rules: list[Rule] | None = None
    window_ms: Annotated[int, Field(ge=100, le=600_000)] | None = None
    hot_keys_max: Annotated[int, Field(gt=0)] | None = None
    connect_timeout_ms: Annotated[int, Field(gt=0)] | None = None
    upstream_timeout_ms: Annotated[int, Field(ge=1_000, le=600_000)] | None = None
    read_from: Literal["primary", "prefer-replica", "replica", "hot-only"] = "primary"
    read_your_writes: Literal["none", "connection", "proxy"] = "connection"
    replica_lag_max_ms: Annotated[int, Field(ge=0, le=600_000), AfterValidator(_is_lag)] = 1_000
    sentinel_username: str | None = None
    sentinel_password: Annotated[str | None, Field(repr=False)] = None
    redact_keys: bool = False
    buffers_max_bytes: Annotated[int, Field(gt=0)] | None = None
    clients_max: Annotated[int, Field(gt=0)] | None = None
    log: Literal["error", "warn", "info", "debug"] = "info"

    def to_json(self) -> dict[str, Any]:
        """As the native module takes it."""
        elsewhere = {"rules", "upstream", "sentinel_username", "sentinel_password"}
        whole = self.model_dump(mode="json", exclude=elsewhere, exclude_none=True)
        rules = None if self.rules is None else [rule.to_json() for rule in self.rules]
        upstream = upstream_json(self.upstream) | {
            "sentinel_username": self.sentinel_username,
            "sentinel_password": self.sentinel_password,
        }
        return whole | {"http": self.http, "rules": rules, "upstream": upstream}


def upstream_json(url: UpstreamUrl) -> dict[str, Any]:
    """A parsed URL as the native module takes it."""
    return {
        "mode": "sentinel" if url.sentinel_service else "auto",
        "sentinel_service": url.sentinel_service,
        "addresses": list(url.addresses),
        "db": url.db,
        "username": url.username,
        "password": url.password,
    }
