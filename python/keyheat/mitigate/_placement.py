"""Names whose Cluster slot is chosen: hash tags found by search, and who owns them now.

Names must not depend on the topology: two processes that see a resharding at different moments
must still mean the same key. So the names are fixed (`spread_tags(n)`: one tag in each of n even
shares of the slots), and only the *choice* among them looks at who owns which slot.

A slot is CRC16 (XMODEM) of the tag modulo 16,384; `binascii.crc_hqx` is that CRC. One tag in 16,384
hits a given slot, so a search takes some milliseconds, once per slot and process.
"""

import binascii
from functools import lru_cache
from itertools import count
from typing import Final

from keyheat.mitigate._commands import Client

SLOTS: Final = 16_384


def slot_of(key: bytes) -> int:
    """The Cluster slot of a key, hash tag included."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


@lru_cache(maxsize=4096)
def tag_of_slot(slot: int) -> bytes:
    """A short text whose slot is `slot`: companions of a key lie beside it whatever its own name holds."""
    for number in count():
        tag = b"%x" % number
        if binascii.crc_hqx(tag, 0) % SLOTS == slot:
            return tag
    raise AssertionError  # pragma: no cover - CRC16 reaches every slot


@lru_cache(maxsize=64)
def spread_tags(shares: int) -> tuple[bytes, ...]:
    """One tag in each of `shares` even parts of the slots, in the order of the parts.

    Args:
        shares: How many, at most 16,384.
    """
    found: dict[int, bytes] = {}
    for number in count():
        tag = b"%x" % number
        found.setdefault(binascii.crc_hqx(tag, 0) % SLOTS * shares // SLOTS, tag)
        if len(found) == shares:
            break
    return tuple(found[share] for share in range(shares))


def primaries_of(client: Client, tags: tuple[bytes, ...]) -> dict[str, list[int]]:
    """Which tags each primary owns, by the client's own view of the Cluster.

    Returns:
        Indexes into `tags` by the primary's name; empty before the client has met its Cluster.
    """
    owned: dict[str, list[int]] = {}
    slots = client.nodes_manager.slots_cache
    for index, tag in enumerate(tags):
        nodes = slots.get(slot_of(tag))
        if nodes:
            owned.setdefault(nodes[0].name, []).append(index)
    return owned


def primary_of_slot(client: Client, slot: int) -> str | None:
    """Name of the primary that owns a slot, by the client's own view."""
    nodes = client.nodes_manager.slots_cache.get(slot)
    return str(nodes[0].name) if nodes else None
