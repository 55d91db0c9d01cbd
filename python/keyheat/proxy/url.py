"""Where Redis is: `redis://user:password@host:port/db`, or `redis+sentinel://host:port/service`."""

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from keyheat.errors import ConfigError

DEFAULT_PORT: Final = 6379
DEFAULT_SENTINEL_PORT: Final = 26379
_SCHEMES: Final = ("redis", "valkey")
_TLS_SCHEMES: Final = ("rediss", "valkeys")
_SENTINEL: Final = "+sentinel"
_FORM: Final = "redis://[user:password@]host[:port][,host[:port]…][/db]"


@dataclass(frozen=True, slots=True)
class UpstreamUrl:
    """A parsed URL; its `repr` and `str` never show the password."""

    addresses: tuple[str, ...]
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    is_tls: bool = False
    sentinel_service: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """Host of the first address, without the brackets of IPv6."""
        return self.addresses[0].rsplit(":", 1)[0].strip("[]")

    @property
    def port(self) -> int:
        """Port of the first address."""
        return int(self.addresses[0].rsplit(":", 1)[1])

    def __str__(self) -> str:
        user = f"{self.username or ''}:***@" if self.password else ""
        scheme, path = ("rediss" if self.is_tls else "redis", "")
        if self.sentinel_service:
            scheme, path = (f"{scheme}{_SENTINEL}", f"/{self.sentinel_service}")
        return f"{scheme}://{user}{','.join(self.addresses)}{path}" + (f"/{self.db}" if self.db else "")


def parse_url(text: str, *, is_for_proxy: bool = False) -> UpstreamUrl:
    """Parse a URL; `host:port` alone is one, too.

    Args:
        text: The URL.
        is_for_proxy: Whether `rediss://` and Sentinels are accepted.

    Raises:
        ConfigError: It is not a URL of a Redis server, or asks for what keyheat cannot do yet. The
            message repeats no part of it that might be a password.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "redis", scheme
    plain = scheme.lower().removesuffix(_SENTINEL)
    is_sentinel = plain != scheme.lower()
    is_tls = plain in _TLS_SCHEMES
    if is_tls and not is_for_proxy:
        raise ConfigError(
            f"{scheme}:// asks for TLS, which this command does not speak; the proxy does "
            "(keyheat proxy --upstream)"
        )
    if is_sentinel and not is_for_proxy:
        raise ConfigError(
            f"{scheme}:// names Sentinels, which this command does not ask; the proxy does "
            "(keyheat proxy --upstream); here, name the primary: redis://host:port"
        )
    if scheme.lower() == "unix":
        raise ConfigError("unix:// sockets are not supported yet: use redis://host:port")
    if plain not in (*_SCHEMES, *_TLS_SCHEMES):
        raise ConfigError(
            f"the URL starts with {scheme!r}://; accepted: redis://, rediss://, valkey://, redis+sentinel:// "
            f"({_FORM})"
        )
    rest, _, query = rest.partition("?")
    if query:
        raise ConfigError(f"options after '?' in the URL are not supported; accepted: {_FORM}")
    credentials, _, hosts = rest.rpartition("@")
    hosts, _, db = hosts.partition("/")
    service = None
    if is_sentinel:
        service, _, db = db.partition("/")
        if not service:
            raise ConfigError(
                "the URL does not name the service the Sentinels watch; accepted: "
                "redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]"
            )
    username, colon, password = credentials.partition(":")
    if credentials and not colon:
        raise ConfigError(
            f"a user without a password in the URL; accepted: {_FORM} (':password@' for the default user)"
        )
    port = DEFAULT_SENTINEL_PORT if is_sentinel else DEFAULT_PORT
    return UpstreamUrl(
        addresses=tuple(parse_address(host, port) for host in hosts.split(",")),
        db=_db(db),
        username=unquote(username) or None,
        password=unquote(password) or None,
        is_tls=is_tls,
        sentinel_service=unquote(service) if service else None,
    )


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> str:
    """`host:port` from `host[:port]` or `[v6][:port]`; `:port`, or a port alone, means 127.0.0.1.

    Raises:
        ConfigError: The port is none, or an IPv6 address has no brackets.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        text = f":{text}"  # no host is a mere number
    if text.startswith("["):
        host, closed, port = text.partition("]")
        host, port, is_whole = f"{host}]", port.removeprefix(":"), bool(closed)
    else:
        host, _, port = text.partition(":")
        is_whole = ":" not in port
    if not is_whole:
        raise ConfigError("the address has too many ':'; accepted: host:port, [IPv6]:port")
    if port and not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        # Not repeated: in redis://user:password without a host, this is the password.
        raise ConfigError("the port in the address is none; accepted: host:port with a port of 0 to 65535")
    return f"{host or '127.0.0.1'}:{int(port) if port else default_port}"


def _db(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(
            "the database in the URL is no number; accepted: 0 and up, as in redis://host:6379/0"
        )
    return int(text)
