"""What a tracking connection over TLS has to hold to: no less than the client's own connections do.

An `ssl.SSLSocket` cannot leave Python: its session lives in OpenSSL. So the client's connection class only
connects the socket (which keeps its socket options); what it would have asked of the server is written down
here, and the engine asks it with a TLS library of its own, then logs in.

Every setting is honoured or refused by name. Refused is what would be lost in silence: lists of ciphers,
OCSP, revocation lists, keys with a password, connection classes of one's own. Certificates are believed as
by `ssl.create_default_context()`: the system's, and the client's own beside them. What is excluded by
`ssl_exclude_verify_flags` is checked all the same. The form of certificates, which Python 3.13 checks by
default (`VERIFY_X509_STRICT`), is left to the client's own connections.
"""

import inspect
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

# Adding one? Say below what becomes of it.
_HONOURED: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_exclude_verify_flags",
        "ssl_include_verify_flags",
        "ssl_keyfile",
        "ssl_min_version",
        "ssl_ocsp_context",  # nothing by themselves: what would use them is refused
        "ssl_ocsp_expected_cert",
        "ssl_password",
    }
)
# Flags that ask for nothing that is not done here anyway, or ask for less.
_HARMLESS_FLAGS: Final = (
    ssl.VerifyFlags.VERIFY_X509_TRUSTED_FIRST
    | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    | ssl.VerifyFlags.VERIFY_ALLOW_PROXY_CERTS
)
# Level 2 is 112 bits, and that is the least the engine accepts.
_SECURITY_LEVEL_MAX: Final = 2


class TlsRefusedError(Exception):
    """A setting cannot be honoured; the message names it."""


@dataclass(frozen=True)
class Terms:
    """What is asked of a server, and shown to it.

    Attributes:
        checks_chain: Whether somebody who is believed must have issued its certificate.
        checks_name: Whether that must be for the name connected to.
        ca_files: Files of certificates that are believed.
        ca_directories: Directories of them, by hash.
        ca_pem: More of them.
        ca_der: More of them.
        is_partial_chain_enough: Whether a chain may end at one that did not sign itself.
        identity: The client's own certificate and its key.
        is_tls13_only: Whether TLS 1.2 is not good enough.
    """

    checks_chain: bool
    checks_name: bool
    ca_files: tuple[str, ...] = ()
    ca_directories: tuple[str, ...] = ()
    ca_pem: bytes = b""
    ca_der: bytes = b""
    is_partial_chain_enough: bool = False
    identity: tuple[str, str] | None = None
    is_tls13_only: bool = False


@dataclass(frozen=True)
class Handover:
    """What the engine needs beside the socket.

    Attributes:
        server_name: The name connected to.
        terms: What is asked of the server.
        credentials: User and password.
        database: The database.
    """

    server_name: str
    terms: Terms
    credentials: tuple[bytes, bytes] | None = field(repr=False)
    database: int


def is_tls(pool: Any) -> bool:
    """Whether the connections of a pool are encrypted.

    Raises:
        ConnectionError: They are to be, and which class does it is not known yet.
    """
    if _ssl_class(pool.connection_class) is not None:
        return True
    if (pool.connection_kwargs or {}).get("ssl"):
        # Never in plain text instead.
        raise ConnectionError("TLS: the client has not connected to any node yet")
    return False


def identity(pool: Any) -> tuple[tuple[str, str], ...]:
    """What tells the TLS settings of one pool from those of another; empty without TLS."""
    # Whatever stands in for a pool, protecting must not fail by it.
    kwargs = getattr(pool, "connection_kwargs", None)
    connection_class = getattr(pool, "connection_class", object)
    if not isinstance(kwargs, dict) or not isinstance(connection_class, type):
        return ()
    options = {name: value for name, value in kwargs.items() if name.startswith("ssl")}
    if _ssl_class(connection_class) is not None:
        options |= _options(pool)
        if _library_of(connection_class) not in {"redis", "valkey"}:
            options["class"] = id(connection_class)
    # A blocking client has settings that an asyncio client does not know; left alone they say nothing.
    no_means_something = {"ssl_check_hostname", "ssl_cert_reqs"}
    said = {name: value for name, value in options.items() if value or name in no_means_something}
    return tuple(sorted((name, repr(value)) for name, value in said.items()))


def hand_over(library: str, pool: Any, connection: Any, *, is_cluster: bool) -> tuple[str, int, Handover]:
    """Connect, and write down the rest.

    Args:
        library: The client library's name.
        pool: The pool whose settings count.
        connection: A connection of its blocking class, not connected.
        is_cluster: Whether it is a Cluster client's, whose hook for new connections is not called.

    Raises:
        TlsRefusedError: A setting cannot be honoured.
    """
    if _library_of(pool.connection_class) != library:
        name = f"{pool.connection_class.__module__}.{pool.connection_class.__qualname__}"
        raise TlsRefusedError(f"TLS: what the connection class {name} changes cannot be honoured")
    if not is_cluster and pool.connection_kwargs.get("redis_connect_func") is not None:
        raise TlsRefusedError("TLS: redis_connect_func cannot be honoured")
    handover = Handover(
        server_name=_server_name(connection.host),
        terms=_terms(_options(pool)),
        credentials=_credentials(connection),
        database=int(connection.db or 0),
    )
    # The class above it connects without TLS.
    sock = super(_ssl_class(type(connection)) or type(connection), connection)._connect()
    return "tls", sock.detach(), handover


def _ssl_class(connection_class: type[Any]) -> type[Any] | None:
    return next((each for each in connection_class.__mro__ if each.__name__ == "SSLConnection"), None)


def _library_of(connection_class: type[Any]) -> str:
    return connection_class.__module__.split(".")[0]


def _options(pool: Any) -> dict[str, Any]:
    """All TLS settings; those not given as the pool's own class has them."""
    options: dict[str, Any] = {}
    for each in reversed(pool.connection_class.__mro__):
        if each is not object and "__init__" in vars(each):
            taken = inspect.signature(vars(each)["__init__"]).parameters.values()
            options |= {each.name: each.default for each in taken if each.name.startswith("ssl_")}
    given = (pool.connection_kwargs or {}).items()
    return options | {name: value for name, value in given if name.startswith("ssl_")}


def _terms(options: dict[str, Any]) -> Terms:
    _refuse_what_is_lost(options)
    context = ssl.create_default_context()
    if options.get("ssl_min_version") is not None:
        context.minimum_version = options["ssl_min_version"]
    checks_chain = options["ssl_cert_reqs"] not in {None, "none", ssl.CERT_NONE}
    return Terms(
        checks_chain=checks_chain,
        checks_name=checks_chain and bool(options["ssl_check_hostname"]),
        is_partial_chain_enough=_is_partial_chain_enough(context, options),
        identity=_identity(options),
        is_tls13_only=context.minimum_version in {ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.MAXIMUM_SUPPORTED},
        **(_authorities(options) if checks_chain else {}),
    )


def _refuse_what_is_lost(options: dict[str, Any]) -> None:
    for name, value in sorted(options.items()):
        if name not in _HONOURED and value:
            raise TlsRefusedError(f"TLS: {name} cannot be honoured")


def _is_partial_chain_enough(context: ssl.SSLContext, options: dict[str, Any]) -> bool:
    """What the flags say of chains.

    Raises:
        TlsRefusedError: They ask for something else.
    """
    if context.security_level > _SECURITY_LEVEL_MAX:
        raise TlsRefusedError(f"TLS: OpenSSL's security level {context.security_level} cannot be honoured")
    usual = flags = context.verify_flags
    for flag in options.get("ssl_include_verify_flags") or ():
        flags |= flag
    for flag in options.get("ssl_exclude_verify_flags") or ():
        flags &= ~flag
    if lost := flags & ~(usual | _HARMLESS_FLAGS):
        raise TlsRefusedError(f"TLS: ssl_include_verify_flags: {lost!r} cannot be honoured")
    return bool(flags & ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN)


def _authorities(options: dict[str, Any]) -> dict[str, Any]:
    system = ssl.get_default_verify_paths()
    data: Any = options.get("ssl_ca_data") or b""
    is_text = isinstance(data, str)
    return {
        "ca_files": _paths((system.cafile, options.get("ssl_ca_certs"))),
        "ca_directories": _paths((system.capath, options.get("ssl_ca_path"))),
        "ca_pem": data.encode() if is_text else b"",
        "ca_der": b"" if is_text else bytes(data),
    }


def _identity(options: dict[str, Any]) -> tuple[str, str] | None:
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if not certificate:
        return None
    certificate, key = _paths((certificate, key or certificate))
    if b"ENCRYPTED" in Path(key).read_bytes():
        raise TlsRefusedError("TLS: ssl_keyfile: a key with a password (ssl_password) cannot be read")
    return certificate, key


def _paths(given: Iterable[Any]) -> tuple[str, ...]:
    return tuple(os.fsdecode(path) for path in given if path)


def _server_name(host: str) -> str:
    return host if host.isascii() else host.encode("idna").decode()


def _credentials(connection: Any) -> tuple[bytes, bytes] | None:
    """User and password, as the client's connections would find them."""
    provider = connection.credential_provider
    if provider is not None:
        found = tuple(provider.get_credentials())
    elif connection.username or connection.password:
        found = (connection.username or "default", connection.password or "")
    else:
        return None
    if not found:
        return None
    user, password = ("default", *found) if len(found) == 1 else found
    encode = connection.encoder.encode
    return bytes(encode(user)), bytes(encode(password))
