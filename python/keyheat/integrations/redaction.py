"""How a key is shown in metrics, traces and logs: keys may hold what nobody else should read.

Metrics and traces name no key unless told to. Where a key is shown, a function from the key to a text says
how; these are the usual ones, and any other will do.
"""

import hashlib
from collections.abc import Callable

from keyheat.model import printable

Redact = Callable[[bytes], str]

_DIGITS = 12


def shown(key: bytes) -> str:
    r"""The key as it is, control characters escaped.

    >>> print(shown(b"item:7\n"))
    item:7\x0a
    """
    return printable(key)


def hashed(key: bytes) -> str:
    """A digest of the key: tells keys apart, and hides them from whoever cannot guess them.

    >>> hashed(b"item:7")
    'sha256:5fcc6761a2de'
    """
    return f"sha256:{hashlib.sha256(key).hexdigest()[:_DIGITS]}"


def prefixed(key: bytes) -> str:
    """The key up to its last colon: the kind of thing, not which one.

    >>> prefixed(b"user:4711")
    'user:*'
    >>> prefixed(b"4711")
    '*'
    """
    head, colon, _ = key.rpartition(b":")
    return printable(head + colon) + "*"
