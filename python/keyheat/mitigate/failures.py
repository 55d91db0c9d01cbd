"""Which exceptions say that a node or source is failing, and which that it answered "no".

A refused command (`WRONGTYPE`, `NOPERM`) is an answer: the node works. No connection, no reply in time,
a node still loading its data or a Cluster that is down is not. redis-py and valkey-py have the same
names in separate trees, so classes are known by name and library: neither has to be imported.

A wrong password and an exhausted pool of connections are `ConnectionError`s by inheritance, but say
nothing about the node; they are no failures, so that a breaker does not hide them behind its own error.
"""

from collections.abc import Callable
from typing import Final

IsFailure = Callable[[BaseException], bool]

_LIBRARIES: Final = ("redis", "valkey")
_FAILURES: Final = frozenset({"ConnectionError", "TimeoutError", "ClusterDownError", "TryAgainError"})
_ANSWERS: Final = frozenset({"AuthenticationError", "AuthorizationError", "MaxConnectionsError"})


def is_node_failure(error: BaseException) -> bool:
    """Whether the error says that the node could not be used; the default of breaker and loader."""
    if isinstance(error, OSError):  # includes TimeoutError, the built-in one
        return True
    names = _names(error)
    return not names.isdisjoint(_FAILURES) and names.isdisjoint(_ANSWERS)


def is_client_error(error: BaseException) -> bool:
    """Whether the error comes from talking to the server at all: the client library's, or the system's."""
    return isinstance(error, OSError) or not _names(error).isdisjoint({"RedisError", "ValkeyError"})


def is_no_script(error: BaseException) -> bool:
    """Whether the server does not know the script (any more)."""
    return "NoScriptError" in _names(error)


def is_wrong_type(error: BaseException) -> bool:
    """Whether the key holds something other than a string."""
    return is_client_error(error) and str(error).startswith("WRONGTYPE")


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in _LIBRARIES}
