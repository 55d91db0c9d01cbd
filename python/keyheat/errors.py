"""Every error keyheat raises by itself; redis-py's own exceptions pass through untouched.

::

    KeyheatError
    ├── ConfigError            a setting, rules file or URL that cannot be used
    ├── TraceError             a recorded trace that cannot be read
    ├── EmbeddedServerError    no server binary, or it did not start
    ├── AddressInUseError      the address to listen on is taken
    ├── UpstreamError          the Redis or Valkey server cannot be used
    │   ├── UpstreamUnreachableError   nobody answers there
    │   └── UpstreamRefusedError       it answers, and says no (password, ACL, TLS)
    ├── KeyheatUnreachableError        no keyheat answers at the http address
    ├── TurnedBackError        keyheat did not forward the call, to protect what is behind
    │   ├── ShedError                  too many calls are under way already
    │   ├── CircuitOpenError           the node or source has been failing
    │   ├── WaitTimeoutError           another caller's load did not end within the budget
    │   └── LoadFailedError            another process's load of the key failed
    └── InternalError          a bug in keyheat: please report it

Each class knows its `slug` (stable, for scripts), its `side` (who has to act: `downstream` the
caller, `upstream` the server, `internal` keyheat) and whether trying again can help.
"""

from typing import ClassVar, Literal

Side = Literal["downstream", "upstream", "internal"]


class KeyheatError(Exception):
    """Root of keyheat's own errors; see the module's docstring for the tree."""

    slug: ClassVar[str] = "keyheat"
    side: ClassVar[Side] = "internal"
    retryable: ClassVar[bool] = False


class ConfigError(KeyheatError):
    """A setting, rules file or URL that cannot be used; names it and the accepted values."""

    slug = "config"
    side = "downstream"


class TraceError(KeyheatError):
    """A recorded trace that cannot be read."""

    slug = "trace"
    side = "downstream"


class EmbeddedServerError(KeyheatError):
    """No server binary was found, or it did not start."""

    slug = "embedded-server"


class AddressInUseError(KeyheatError):
    """The address to listen on is taken."""

    slug = "address-in-use"
    side = "downstream"
    retryable = True


class UpstreamError(KeyheatError):
    """The Redis or Valkey server cannot be used."""

    slug = "upstream"
    side = "upstream"


class UpstreamUnreachableError(UpstreamError):
    """Nobody answers at the server's address."""

    slug = "upstream-unreachable"
    retryable = True


class UpstreamRefusedError(UpstreamError):
    """The server answers, and refuses: wrong password, missing right, TLS expected."""

    slug = "upstream-refused"


class KeyheatUnreachableError(KeyheatError):
    """No keyheat answers at the http address."""

    slug = "keyheat-unreachable"
    side = "downstream"
    retryable = True


class TurnedBackError(KeyheatError):
    """keyheat did not forward the call, to protect what is behind; trying again later can help."""

    slug = "turned-back"
    retryable = True


class ShedError(TurnedBackError):
    """Too many calls are under way or waiting already; nothing was sent."""

    slug = "shed"
    side = "upstream"


class CircuitOpenError(TurnedBackError):
    """The node or source has been failing, so nothing is sent until a probe succeeds.

    Attributes:
        retry_after_s: Seconds until the next probe may pass; 0 where that is not known.
    """

    slug = "circuit-open"
    side = "upstream"

    def __init__(self, *words: object, retry_after_s: float = 0.0) -> None:
        super().__init__(*words)
        self.retry_after_s = retry_after_s


class WaitTimeoutError(TurnedBackError):
    """Another caller loads the key, and did not end within the waiting budget."""

    slug = "wait-timeout"


class LoadFailedError(TurnedBackError):
    """Another process was loading the key, and its load failed; the source was not asked again."""

    slug = "load-failed"
    side = "upstream"


class InternalError(KeyheatError):
    """A bug in keyheat: please report it."""

    slug = "internal"
