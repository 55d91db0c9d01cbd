"""Key patterns as Redis' KEYS reads them: `*`, `?`, `[a-c]`, `[^x]`, a backslash quotes the next byte.

Kept to the server's own rules (`stringmatchlen`), oddities included: an unclosed `[` ends at the end
of the pattern, a range may be given backwards. `fnmatch` differs (`[!x]`, no quoting).
"""

import re
from functools import lru_cache


@lru_cache(maxsize=4096)
def compiled(pattern: bytes) -> re.Pattern[bytes]:
    """The pattern as a regular expression for the whole key."""
    out: list[bytes] = []
    at = 0
    while at < len(pattern):
        byte = pattern[at : at + 1]
        if byte == b"*":
            if not (out and out[-1] == b".*"):  # `**` means `*`, and costs no backtracking
                out.append(b".*")
        elif byte == b"?":
            out.append(b".")
        elif byte == b"[":
            expression, at = _one_of(pattern, at + 1)
            out.append(expression)
        else:
            if byte == b"\\" and at + 1 < len(pattern):
                at += 1
            out.append(re.escape(pattern[at : at + 1]))
        at += 1
    return re.compile(b"".join(out), re.DOTALL)


def matches(pattern: bytes, key: bytes) -> bool:
    """Whether KEYS with this pattern would list the key."""
    return compiled(pattern).fullmatch(key) is not None


def _one_of(pattern: bytes, at: int) -> tuple[bytes, int]:
    """The class that begins after `[`; and where its `]` is."""
    is_negated = pattern[at : at + 1] == b"^"
    at += is_negated
    members: set[int] = set()
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            at += 1
            members.add(pattern[at])
        elif at + 2 < len(pattern) and pattern[at + 1 : at + 2] == b"-":
            low, high = sorted((pattern[at], pattern[at + 2]))
            members.update(range(low, high + 1))
            at += 2
        else:
            members.add(pattern[at])
        at += 1
    if is_negated:
        members = set(range(256)) - members
    if not members:
        return b"(?!)", at
    return b"[" + b"".join(b"\\x%02x" % member for member in sorted(members)) + b"]", at
