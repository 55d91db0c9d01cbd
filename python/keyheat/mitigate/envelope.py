r"""How a loaded value lies on the server: as the client would store it, or behind a header.

    keyheat:1:<kind>:<fresh until>:<kept past that>:<load time>:<nonce>\n<payload>

`kind` is `b` bytes, `s` str, `i` int, `f` float, `j` by the serializer, `n` nothing (a negative entry);
`fresh until` is in ms of the wall clock, the other times in ms; the nonce makes each header unlike any
other, so that a header says which write it came from.

The header carries what the server cannot tell: what type a value had, that there is nothing at the source,
until when a value is fresh while it is kept longer, and how long loading it took. Where none of that is
needed a value is stored without (`LoadingSettings.format`), so that everybody else can read it by GET.

What begins otherwise is a foreign value, and given to the caller as GET gives it. A header of another
version, or a broken one, counts as a missing value.
"""

import json
import secrets
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

MAGIC: Final = b"keyheat:"
_VERSION: Final = b"1"
_HEADER_MAX: Final = 128
_FIELDS: Final = 7
NOTHING: Final = "n"
UNREADABLE: Final = "?"


class Serializer(Protocol):
    """Turns values other than bytes, str, int and float into bytes, and back."""

    def dumps(self, value: object) -> bytes:
        """The value as bytes."""

    def loads(self, payload: bytes) -> object:
        """The value again; raises if the bytes are not of this serializer."""


class Json:
    """JSON, compact; tuples come back as lists, keys of objects as str."""

    def dumps(self, value: object) -> bytes:
        """The value as bytes."""
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()

    def loads(self, payload: bytes) -> object:
        """The value again."""
        return json.loads(payload)


class Entry(NamedTuple):
    """A stored value behind a header.

    Attributes:
        kind: See the module; `?` if this version cannot read it.
        fresh_until_s: Wall clock time in seconds.
        stale_s: Seconds the server keeps it past that; 0 if its expiry is the end of freshness.
        load_s: How long loading it took, in seconds.
        mark: The header: how the stored bytes begin.
        payload: The rest.
    """

    kind: str
    fresh_until_s: float
    stale_s: float
    load_s: float
    mark: bytes
    payload: bytes


_READERS: Final[dict[str, Callable[[bytes], object]]] = {
    "b": bytes,
    "s": bytes.decode,
    "i": int,
    "f": float,
    NOTHING: lambda _: None,
}
_PLAIN: Final[dict[type, str]] = {bytes: "b", str: "s", int: "i", float: "f"}


def plain(value: object) -> bytes | None:
    """The value as a client stores it, or None if that would lose what it is."""
    if isinstance(value, bytes) and type(value) is bytes:
        return None if value.startswith(MAGIC) else value
    if type(value) is str:
        return plain(value.encode())
    return repr(value).encode() if type(value) in (int, float) else None


def pack(
    value: object, serializer: Serializer, *, fresh_until_s: float, stale_s: float = 0.0, load_s: float = 0.0
) -> bytes:
    """The value behind a header.

    Args:
        value: Anything the serializer takes, or None for a negative entry.
        serializer: For what is not bytes, str, int or float.
        fresh_until_s: Wall clock time in seconds.
        stale_s: Seconds the server is going to keep it past that.
        load_s: How long loading it took, in seconds.

    Raises:
        TypeError: The serializer cannot take it (or whatever else it raises).
    """
    kind, payload = _encoded(value, serializer)
    times = ":".join(f"{time_s * 1000:.0f}" for time_s in (fresh_until_s, stale_s, load_s))
    header = f"{kind}:{times}:{secrets.token_hex(4)}\n"
    return MAGIC + _VERSION + b":" + header.encode() + payload


def parse(raw: bytes) -> Entry | None:
    """What lies behind a header; None if there is none, and the value is a foreign one."""
    if not raw.startswith(MAGIC):
        return None
    end = raw.find(b"\n", 0, _HEADER_MAX) + 1
    fields = raw[:end].split(b":")
    if len(fields) != _FIELDS or fields[1] != _VERSION:
        return _unreadable(raw, end)
    try:
        until_ms, stale_ms, load_ms = (int(field) for field in fields[3:6])
        kind = fields[2].decode()
    except ValueError:
        return _unreadable(raw, end)
    return Entry(kind, until_ms / 1000, stale_ms / 1000, load_ms / 1000, raw[:end], raw[end:])


def _unreadable(raw: bytes, end: int) -> Entry:
    return Entry(UNREADABLE, 0.0, 0.0, 0.0, raw[: max(end, len(MAGIC))], b"")


def unpack(entry: Entry, serializer: Serializer) -> object:
    """The value that was packed.

    Raises:
        ValueError: It cannot be read (or whatever else the serializer raises).
    """
    reader = _READERS.get(entry.kind)
    return serializer.loads(entry.payload) if reader is None else reader(entry.payload)


def _encoded(value: object, serializer: Serializer) -> tuple[str, bytes]:
    if value is None:
        return NOTHING, b""
    kind = _PLAIN.get(type(value))
    if kind is None:
        return "j", serializer.dumps(value)
    if isinstance(value, bytes):
        return kind, value
    return kind, value.encode() if isinstance(value, str) else repr(value).encode()
