"""The proxy's settings, checked before anything starts.

The native module checks again and has the last word; these models are where a user's mistake is met
first, with the file, the key and the accepted values in the message.
"""

import json
import ssl
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from keyheat.detect.rules import Match, Rule
from keyheat.errors import ConfigError
from keyheat.proxy.secret_files import read_secret
from keyheat.proxy.url import UpstreamUrl, parse_address, parse_url

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


def _url(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_url(value, is_for_proxy=True)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _address(default_port: int) -> BeforeValidator:
    def parse(value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return parse_address(value, default_port)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    return BeforeValidator(parse)


def _none(value: object) -> object:
    # A file and a flag have no other way to say so.
    return None if value in ("", "none") else value


def _words(value: object) -> object:
    # A flag is one text.
    return tuple(word for word in value.split(",") if word) if isinstance(value, str) else value


def _are_networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        try:
            ip_network(text, strict=False)
        except ValueError as error:
            raise ValueError("accepted: networks such as 10.0.0.0/8, fd00::/8, 10.1.2.3") from error
    return value


_Words: Final = BeforeValidator(_words)
_NoneIfEmpty: Final = BeforeValidator(_none)
_File = Annotated[Path | None, _NoneIfEmpty]
_Count = Annotated[int, Field(gt=0)]
_Amount = Annotated[int, Field(ge=1, le=1_000_000)]


class Entity(BaseModel):
    """A shop, a promotion: its keys get a longer expiry when they are written, while its time lasts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=200)]
    match: Match
    starts: AwareDatetime
    ends: AwareDatetime
    ttl_s: Annotated[int, Field(ge=1, le=31_536_000)]

    @model_validator(mode="after")
    def _has_time(self) -> Self:
        if self.ends <= self.starts:
            raise ValueError("accepted: ends later than starts")
        return self

    def to_json(self) -> dict[str, Any]:
        """As the native module takes it: moments in seconds of Unix time."""
        return {
            "name": self.name,
            "match": self.match.model_dump(exclude_none=True),
            "starts_s": self.starts.timestamp(),
            "ends_s": self.ends.timestamp(),
            "ttl_s": self.ttl_s,
        }


class ProxySettings(BaseModel):
    """Everything a proxy can be told; `docs/reference/proxy.toml` says what each of it does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Where clients connect, and where the proxy is watched.
    listen: Annotated[str | None, _address(6380), _NoneIfEmpty] = "127.0.0.1:6380"
    reuse_port: bool = False
    tls_listen: Annotated[str | None, _address(6380), _NoneIfEmpty] = None
    tls_cert_file: _File = None
    tls_key_file: _File = None
    tls_client_ca_file: _File = None
    proxy_protocol: Literal["off", "required"] = "off"
    proxy_protocol_trusted: Annotated[tuple[str, ...], _Words, AfterValidator(_are_networks)] = ()
    handshake_timeout_ms: Annotated[int, Field(ge=100, le=600_000)] = 5_000
    unix_socket: Annotated[Path | None, _NoneIfEmpty, AfterValidator(_is_short_enough)] = None
    unix_socket_mode: Annotated[str, Field(pattern="^[1-7][0-7]{2}$")] = "600"
    announce: Annotated[Annotated[str, Field(pattern=r"^.+:\d{1,5}$")] | None, _NoneIfEmpty] = None
    http: Annotated[str | None, _address(6381), _NoneIfEmpty] = "127.0.0.1:6381"

    # What is behind it.
    upstream: Annotated[UpstreamUrl | None, BeforeValidator(_url)] = UpstreamUrl(("127.0.0.1:6379",))
    auth: Literal["proxy", "pass_through"] = "proxy"
    upstream_username: Annotated[str | None, _NoneIfEmpty] = None
    upstream_password_file: _File = None
    upstream_tls_ca_file: _File = None
    upstream_tls_cert_file: _File = None
    upstream_tls_key_file: _File = None
    upstream_tls_verify: Literal["full", "ca", "none"] = "full"
    sentinel_username: Annotated[str | None, _NoneIfEmpty] = None
    sentinel_password_file: _File = None
    connect_timeout_ms: _Count = 1_000
    upstream_timeout_ms: Annotated[int, Field(ge=1_000, le=600_000)] = 30_000

    # What is done about a node that fails.
    breaker: bool = True
    breaker_window_ms: Annotated[int, Field(ge=100, le=600_000)] = 10_000
    breaker_calls_min: _Amount = 20
    breaker_error_rate: Annotated[float, Field(ge=0.001, le=1)] = 0.5
    breaker_slow_ms: Annotated[int, Field(ge=1, le=600_000)] = 1_000
    breaker_slow_rate: Annotated[float, Field(ge=0.001)] = 0.8
    breaker_silence_ms: Annotated[int, Field(ge=200, le=600_000)] = 5_000
    breaker_open_ms: Annotated[int, Field(ge=1, le=600_000)] = 50
    breaker_open_max_ms: Annotated[int, Field(ge=1, le=600_000)] = 2_000
    breaker_probes_at_once: _Amount = 1
    breaker_probes_needed: _Amount = 3
    breaker_recovery_ms: Annotated[int, Field(ge=0, le=600_000)] = 5_000

    # What is done about a node that is crowded.
    congestion: bool = True
    congestion_limit_max: _Amount = 4_096
    congestion_limit_min: _Amount = 32
    congestion_queue_max: Annotated[int, Field(ge=0, le=1_000_000)] = 8_192
    congestion_queue_timeout_ms: Annotated[int, Field(ge=1, le=600_000)] = 1_000
    stale_on_error_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 0

    # Where reads go.
    replica_reads: bool = True
    read_from: Literal["primary", "prefer-replica", "replica", "hot-only"] = "primary"
    read_your_writes: Literal["none", "connection", "proxy", "global"] = "connection"
    replica_lag_max_ms: Annotated[int, Field(ge=0, le=600_000), AfterValidator(_is_lag)] = 1_000

    # Copies of hot keys.
    copies: bool = True
    copies_max: Annotated[int, Field(ge=0, le=255)] = 0
    copies_max_staleness_ms: Annotated[int, Field(ge=50, le=600_000)] = 1_000
    copies_clock_skew_ms: Annotated[int, Field(ge=0, le=300_000)] = 100
    copies_value_max_bytes: _Count = 1 << 20
    copies_keys_max: _Count = 64

    # What is hot, and what is done about it.
    rules_file: _File = None
    rules: list[Rule] | None = None
    counting: bool = True
    hot_set: Literal["counted", "fed"] = "counted"
    feed_token_file: _File = None
    window_ms: Annotated[int, Field(ge=100, le=600_000)] = 1_000
    hot_keys_max: _Count = 1_000
    local_cache: bool = True
    nx_is_lock: bool = True
    max_staleness_ms: Annotated[int, Field(ge=0, le=600_000), AfterValidator(_is_staleness)] = 100
    cache_bytes: _Count = 64 << 20
    cache_value_max_bytes: _Count = 1 << 20
    longer_expiry: tuple[Entity, ...] = ()
    longer_expiry_factor_max: Annotated[float, Field(ge=1, le=1_000_000)] = 24.0
    longer_expiry_max_s: Annotated[int, Field(ge=1, le=31_536_000)] = 86_400

    # How much of the machine it takes.
    shards: Annotated[int, Field(ge=0, le=1024)] = 0
    clients_max: _Count = 10_000
    client_idle_timeout_s: Annotated[int, Field(ge=0, le=31_536_000)] = 0
    client_output_max_bytes: Annotated[int, Field(ge=0)] = 0
    request_max_bytes: Annotated[int, Field(ge=1024, le=1 << 32)] = 1 << 30
    buffers_max_bytes: _Count = 1 << 30

    # Its end, and its log.
    drain_timeout_s: Annotated[float, Field(ge=0, le=86_400)] = 10.0
    log: Literal["error", "warn", "info", "debug"] = "info"
    log_format: Literal["text", "json"] = "text"
    redact_keys: bool = False
    metrics_hot_keys: Annotated[int, Field(ge=0, le=1_000)] = 10

    def to_json(self) -> dict[str, Any]:
        """As the native module takes it."""
        ours = {name for name in _names() if name.startswith("upstream_tls")} | _OURS
        whole = self.model_dump(mode="json", exclude=ours, exclude_none=True)
        upstream = upstream_json(self.upstream or UpstreamUrl(("127.0.0.1:6379",)))
        if self.upstream is not None and self.upstream.is_tls:
            upstream["tls"] = self._upstream_tls()
        if self.feed_token_file is not None:
            whole["feed_token"] = read_secret(self.feed_token_file, "feed_token_file")
        rules = None if self.rules is None else [rule.to_json() for rule in self.rules]
        whole["longer_expiry"] = [entity.to_json() for entity in self.longer_expiry]
        return whole | {"listen": self.listen, "http": self.http, "rules": rules, "upstream": upstream}

    def changes(self, new: "ProxySettings") -> dict[str, str]:
        """Settings that are others in `new`, with both values; of lists only that they are others.

        Left out is what is made into something else: accounts, and files whose contents count.
        """
        lists = ("rules", "longer_expiry")
        hidden = (_OURS - {"drain_timeout_s"}) | {n for n in _names() if n.startswith("upstream_tls")}
        before, after = (each.model_dump(mode="json", exclude=set(hidden)) for each in (self, new))
        changed = {
            name: f"{name} {json.dumps(value)} -> {json.dumps(after[name])}"
            for name, value in before.items()
            if value != after[name]
        }
        return changed | {name: name for name in lists if getattr(self, name) != getattr(new, name)}

    def _upstream_tls(self) -> dict[str, Any]:
        if self.upstream_tls_ca_file is not None:
            files, directories = [str(self.upstream_tls_ca_file)], []
        else:
            # The system's, as every client of OpenSSL has them.
            system = ssl.get_default_verify_paths()
            files, directories = ([path] if path else [] for path in (system.cafile, system.capath))
        return {
            "verify": self.upstream_tls_verify,
            "ca_files": files,
            "ca_directories": directories,
            "cert_file": _text(self.upstream_tls_cert_file),
            "key_file": _text(self.upstream_tls_key_file),
        }


def _names() -> list[str]:
    return list(ProxySettings.model_fields)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


# What the native module never hears of: it is done, or made into something else, before.
_OURS: Final = frozenset(
    {
        "rules",
        "rules_file",
        "longer_expiry",
        "upstream",
        "upstream_username",
        "upstream_password_file",
        "sentinel_username",
        "sentinel_password_file",
        "drain_timeout_s",
        "feed_token_file",
    }
)


def upstream_json(url: UpstreamUrl) -> dict[str, Any]:
    """A parsed URL as the native module takes it."""
    return {
        "mode": "sentinel" if url.sentinel_service else "auto",
        "sentinel_service": url.sentinel_service,
        "sentinel_username": url.sentinel_username,
        "sentinel_password": url.sentinel_password,
        "addresses": list(url.addresses),
        "db": url.db,
        "username": url.username,
        "password": url.password,
    }
