"""The plain values that cross from stage to stage; keys are bytes, text only at display."""

import base64
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from keyheat.errors import InternalError


class Access(NamedTuple):
    """One access to one key, from whatever source.

    Attributes:
        at_s: Seconds on the source's own clock, or None where the source carries no time.
        op: The operation in lower case as the source names it (`get`, `set`, `cas` …).
        key: The key.
        size_bytes: Size of the value, 0 where the source does not know it.
        ttl_s: Time to live of a write in seconds, 0 for none.
    """

    at_s: float | None
    op: str
    key: bytes
    size_bytes: int
    ttl_s: int = 0


@dataclass(frozen=True, slots=True)
class HotKey:
    """One key of the hot set, as `/api/hot` shows it.

    `fields` holds the whole object as it came; a newer keyheat may say more than this class knows.
    """

    key: bytes
    state: str
    rule: str
    plan: tuple[str, ...]
    reads_per_s: float
    writes_per_s: float
    bytes_per_s: float
    share: float
    since_ns: int
    since_s: float
    node: str | None
    local_hits: int
    first_local_hit_ns: int | None
    fields: dict[str, Any]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "HotKey":
        """Build from one element of `keys`."""
        encoded = fields.get("key_base64")
        key = base64.b64decode(encoded) if encoded else str(fields["key"]).encode()
        return cls(
            key=key,
            state=fields.get("state", "hot"),
            rule=fields.get("rule", ""),
            plan=tuple(fields.get("plan", ())),
            reads_per_s=float(fields.get("reads_per_s", 0)),
            writes_per_s=float(fields.get("writes_per_s", 0)),
            bytes_per_s=float(fields.get("bytes_per_s", 0)),
            share=float(fields.get("share", 0)),
            since_ns=int(fields.get("since_ns", 0)),
            since_s=float(fields.get("since_s", 0)),
            node=fields.get("node"),
            local_hits=int(fields.get("local_hits", 0)),
            first_local_hit_ns=fields.get("first_local_hit_ns"),
            fields=fields,
        )


@dataclass(frozen=True, slots=True)
class HotSet:
    """The versioned set of keys that are hot now."""

    version: int
    now_ns: int
    max_staleness_ms: float
    local_cache_on: bool
    local_cache_reason: str | None
    keys: tuple[HotKey, ...]

    @classmethod
    def from_json(cls, text: str | bytes) -> "HotSet":
        """Parse the answer of `/api/hot`.

        Raises:
            InternalError: The text is not a hot set.
        """
        try:
            whole = json.loads(text)
            local_cache = whole.get("local_cache") or {}
            return cls(
                version=int(whole["version"]),
                now_ns=int(whole.get("now_ns", 0)),
                max_staleness_ms=float(whole.get("max_staleness_ms", 0)),
                local_cache_on=bool(local_cache.get("on", False)),
                local_cache_reason=local_cache.get("reason"),
                keys=tuple(HotKey.from_json(fields) for fields in whole["keys"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InternalError(f"this is not a keyheat hot set: {error!r}") from error


def printable(key: bytes) -> str:
    r"""The key as text that cannot move a terminal's cursor: control and undecodable bytes as \xNN.

    >>> print(printable(b"item:1\x1b[2J\xff"))
    item:1\x1b[2J\xff
    """
    text = key.decode("utf-8", errors="surrogateescape").replace("\\", "\\\\")
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # an undecodable byte, as surrogateescape carries it
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8"))
