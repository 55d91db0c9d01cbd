"""The keys beside a data key, in its Cluster slot: its lease, and what wakes those who wait for it.

A Cluster runs a script only if all its keys share a slot, and a key's slot is that of its hash tag: what
is between its first `{` and the next `}`, unless that is empty. So for a data key

- with a hash tag of its own, a prefix without braces leaves the tag the first one;
- without, the whole key is hashed, and becomes the tag: `prefix{key}`;
- without, but holding a `}` (or empty), it cannot be a tag; a number of the same slot is looked for.

What follows the prefix differs for the three, so that no two keys share a lease.
"""

import itertools
from functools import lru_cache
from typing import NamedTuple

from redis.crc import key_slot


class LeaseKeys(NamedTuple):
    """A data key and what belongs to it; all in one slot."""

    data: bytes
    lease: bytes
    wake: bytes


def keys_for(data: bytes, prefix: bytes) -> LeaseKeys:
    """The keys that belong to a data key.

    Args:
        data: The data key.
        prefix: What the other keys begin with; holds no brace.
    """
    beside = _in_slot_of(data)
    return LeaseKeys(data, prefix + b"lease:" + beside, prefix + b"wake:" + beside)


def _in_slot_of(data: bytes) -> bytes:
    if _has_tag(data):
        return b":" + data
    if data and b"}" not in data:
        return b"{" + data + b"}"
    return b"#{" + _number_in(key_slot(data)) + b"}" + data


def _has_tag(data: bytes) -> bool:
    opening = data.find(b"{")
    return opening >= 0 and data.find(b"}", opening + 1) > opening + 1


@lru_cache(maxsize=1024)
def _number_in(slot: int) -> bytes:
    return next(word for number in itertools.count() if key_slot(word := str(number).encode()) == slot)
