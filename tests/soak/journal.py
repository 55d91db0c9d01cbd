"""What a server had carried out when it died: its append-only file, read without the server.

A write is in that file before it is acknowledged. So a write that was acknowledged and is neither here nor
with the new primary was carried out by nobody, and whoever acknowledged it invented that.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

CONFIG = {"appendonly": "yes", "appendfsync": "no", "auto-aof-rewrite-percentage": "0"}


def pushed(directory: Path) -> dict[str, Counter[int]]:
    """The numbers that were appended to each list."""
    found: dict[str, Counter[int]] = defaultdict(Counter)
    for path in sorted(directory.glob("appendonlydir/*.incr.aof")):
        for words in _commands(path.read_bytes()):
            if words[0].upper() == b"RPUSH":
                found[words[1].decode()].update(int(word) for word in words[2:])
    return found


def _commands(data: bytes) -> Iterator[list[bytes]]:
    at = 0
    while at < len(data):
        line = data.find(b"\r\n", at)
        if line < 0:
            return
        head, at = data[at:line], line + 2
        if not head.startswith(b"*"):
            continue  # a time stamp
        words = []
        for _ in range(int(head[1:])):
            line = data.find(b"\r\n", at)
            if line < 0:
                return
            size, at = int(data[at + 1 : line]), line + 2
            words.append(data[at : at + size])
            at += size + 2
        if at > len(data):
            return  # the last one was cut off by the end
        yield words
