"""Which commands may be answered by somebody else than the primary, and how an absent key answers.

Only deterministic reads of one key, the key first: nothing that asks about the key itself (`TTL`,
`TYPE`, `OBJECT`, `DUMP`), for a copy is another key with another expiry.
"""

from typing import Any, Final

# An absent key answers nil, 0, nothing or a list of these; so a reply that has something in it
# proves that the key was there.
COPY_READS: Final = frozenset(
    b"GET STRLEN GETRANGE SUBSTR GETBIT BITCOUNT "
    b"HGET HMGET HGETALL HLEN HKEYS HVALS HEXISTS HSTRLEN "
    b"LRANGE LINDEX LLEN "
    b"SMEMBERS SISMEMBER SMISMEMBER SCARD SRANDMEMBER "
    b"ZRANGE ZREVRANGE ZRANGEBYSCORE ZREVRANGEBYSCORE ZRANGEBYLEX ZREVRANGEBYLEX "
    b"ZSCORE ZMSCORE ZCARD ZCOUNT ZLEXCOUNT ZRANK ZREVRANK "
    b"XRANGE XREVRANGE XLEN GEOPOS GEODIST GEOSEARCH JSON.GET EXISTS".split()
)
# A replica has the key itself, so questions about it are right there too.
REPLICA_READS: Final = COPY_READS | frozenset(b"TYPE TTL PTTL EXPIRETIME PEXPIRETIME BITPOS GEOHASH".split())


def verb_of(args: tuple[Any, ...]) -> bytes:
    """The command's name in upper case."""
    word = args[0] if args else b""
    return (word if isinstance(word, bytes) else str(word).encode()).upper()


def says_something(reply: object) -> bool:
    """Whether a reply proves that its key exists."""
    if isinstance(reply, (list, tuple)):
        return any(says_something(each) for each in reply)
    return bool(reply)
