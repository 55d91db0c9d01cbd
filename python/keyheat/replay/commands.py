"""Which command plays an operation of a trace.

========================================== =====================================================
in the trace                               sent
========================================== =====================================================
get gets get_lease mget read hget getex    GET (and SET on a miss, with `--fill`)
set set_lease cas write setex psetex       SET, EX with the trace's ttl if it has one
getset hset
add setnx                                  SET NX
replace                                    SET XX
append prepend                             APPEND
incr decr                                  INCR, DECR
delete del getdel                          DEL
unlink touch exists strlen                 the command of that name
expire                                     EXPIRE with the trace's ttl
========================================== =====================================================

Other operations are counted as skipped, by name.
"""

from typing import Final

_READS: Final = frozenset(("get", "gets", "get_lease", "mget", "read", "hget", "getex"))
_SETS: Final = frozenset(("set", "set_lease", "cas", "write", "setex", "psetex", "getset", "hset"))
_CONDITIONAL: Final = {"add": "NX", "setnx": "NX", "replace": "XX"}
_APPENDS: Final = frozenset(("append", "prepend"))
_PLAIN: Final = {
    "incr": "INCR",
    "decr": "DECR",
    "delete": "DEL",
    "del": "DEL",
    "getdel": "DEL",
    "unlink": "UNLINK",
    "touch": "TOUCH",
    "exists": "EXISTS",
    "strlen": "STRLEN",
}
READ_COMMANDS: Final = frozenset(("GET", "TOUCH", "EXISTS", "STRLEN"))

VALUE_MAX_BYTES: Final = 1 << 20
_FILLER: Final = b"keyheat." * (VALUE_MAX_BYTES // 8)

Command = tuple[str | bytes | int, ...]


def value(size_bytes: int) -> bytes:
    """A value of that size, up to VALUE_MAX_BYTES."""
    return _FILLER[:size_bytes]


def command(op: str, key: bytes, size_bytes: int, ttl_s: int) -> Command | None:
    """The command that plays this operation, or None if there is none."""
    if op in _READS:
        return ("GET", key)
    if op in _SETS or op in _CONDITIONAL:
        expiry: Command = ("EX", ttl_s) if ttl_s else ()
        condition: Command = (_CONDITIONAL[op],) if op in _CONDITIONAL else ()
        return ("SET", key, value(size_bytes), *expiry, *condition)
    if op in _APPENDS:
        return ("APPEND", key, value(size_bytes))
    if op == "expire":
        return ("EXPIRE", key, ttl_s or 1)
    return (_PLAIN[op], key) if op in _PLAIN else None
