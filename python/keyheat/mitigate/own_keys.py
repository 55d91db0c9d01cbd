"""Which keys are keyheat's own: those a remedy writes beside the application's.

All names begin with the `prefix` of a remedy's settings, and every default prefix with `PREFIX`: copies
and their fences, leases and wake-ups, a counter's sub-keys and markers, the doctor's probe. A prefix of
somebody's own choice is known from when its settings are made, in this process.

An own key may be as hot as the key it serves, and still nobody is to be told so, and no remedy is for it:
a marker is written with every batch, a sub-key is hot because its counter was spread.
"""

import threading
from typing import Final

PREFIX: Final = b"keyheat:"

_guard = threading.Lock()
_prefixes: tuple[bytes, ...] = (PREFIX,)


def is_own_key(key: bytes) -> bool:
    """Whether a key is one of keyheat's own."""
    return key.startswith(_prefixes)


def reserve(prefix: bytes) -> None:
    """Take keys that begin with a prefix for own keys from now on."""
    global _prefixes  # noqa: PLW0603 - read without the lock, so it is replaced as a whole
    with _guard:
        if not prefix.startswith(_prefixes):
            _prefixes = (*_prefixes, prefix)
