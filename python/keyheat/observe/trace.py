"""Recorded traces as streams of accesses.

What it is: one reader for every trace format keyheat knows, compressed or not. The format is told
from the content, not from the name, and can be forced.

========== ============================================================================== ========
format     one access is                                                                  carries
========== ============================================================================== ========
csv        a line `time,op,key,size`, or any columns named in a header, in any order      all
libcachesim a line `time, object, size[, next_access_vtime]`                              no op
twitter    a line `timestamp,key,key size,value size,client id,operation,TTL`             all
meta       a line under a header with `op_time,key,op,op_count,size,ttl` among its names  all
orm        four bytes, a big-endian integer                                               no time,
                                                                                          no op
========== ============================================================================== ========

Plain, gzip, xz and zstd files are told by their first bytes. Everything is streamed: memory is one
line, whatever the size of the file. A line that cannot be read is counted and skipped, the first
few are remembered for the report, and only a trace without a single good line is an error. A file
that ends in the middle of its compressed stream gives what can be read and says so.
"""

import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal, Self, cast, get_args

from keyheat.errors import TraceError
from keyheat.model import Access

Format = Literal["csv", "libcachesim", "twitter", "meta", "orm"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

LINE_MAX_BYTES: Final = 1 << 20
_PEEK_BYTES: Final = 1 << 16
_EXAMPLES_MAX: Final = 3
_TTL_MAX_S: Final = 10 * 365 * 86_400
_VALUE_MAX_BYTES: Final = 512 << 20

_READ_ERRORS = (EOFError, OSError, lzma.LZMAError, zlib.error)

# The names columns go by in the traces that carry a header.
_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "time": ("time", "op_time", "timestamp", "ts", "real_time"),
    "op": ("op", "operation", "command"),
    "key": ("key", "object", "obj_id", "object_id", "obj", "id", "anonymized key"),
    "size": ("size", "value_size", "value size", "obj_size", "size_bytes"),
    "op_count": ("op_count", "count"),
    "ttl": ("ttl", "ttl_s"),
}

_OPS: Final = frozenset(
    [
        "get",
        "gets",
        "get_lease",
        "mget",
        "read",
        "write",
        "set",
        "set_lease",
        "add",
        "replace",
        "cas",
        "append",
        "prepend",
        "incr",
        "decr",
        "delete",
        "del",
        "unlink",
        "touch",
        "setex",
        "psetex",
        "setnx",
        "getset",
        "getex",
        "getdel",
        "strlen",
        "exists",
        "hget",
        "hset",
        "expire",
    ]
)


@dataclass(slots=True)
class TraceReport:
    """What a reader met so far: good accesses, lines it had to skip, and why."""

    accesses: int = 0
    malformed: int = 0
    examples: list[str] = field(default_factory=list)
    truncated: str | None = None

    def skip(self, where: str, why: str) -> None:
        """Count one record that cannot be read; the content itself is never repeated."""
        self.malformed += 1
        if len(self.examples) < _EXAMPLES_MAX:
            self.examples.append(f"{where}: {why}")


class TraceReader:
    """A trace file as an iterator of `Access`, in the order of the file.

    Args:
        path: The file, compressed or not.
        fmt: One of `FORMATS`, or None to tell it from the content.

    Raises:
        TraceError: The file cannot be opened, its format cannot be told, or (at the end of the
            iteration) not one record in it was good.
    """

    def __init__(self, path: str | Path, fmt: Format | None = None) -> None:
        self.path = Path(path)
        self.report = TraceReport()
        self._stack = ExitStack()
        try:
            self._raw = self._stack.enter_context(self.path.open("rb"))
            self._size = self.path.stat().st_size
            self._stream = self._stack.enter_context(_decompressed(self._raw))
            head = self._stream.peek(_PEEK_BYTES)
        except _READ_ERRORS as error:
            self._stack.close()
            raise TraceError(f"cannot read the trace {self.path}: {_reason(error)}") from error
        if not head:
            self._stack.close()
            raise TraceError(f"the trace {self.path} is empty")
        self.format: Format = fmt or self._told(head)

    @property
    def progress(self) -> float:
        """How much of the file was read, 0 to 1."""
        return min(1.0, self._raw.tell() / self._size) if self._size and not self._raw.closed else 1.0

    def _told(self, head: bytes) -> Format:
        told = tell_format(head)
        if told is None:
            self._stack.close()
            raise TraceError(
                f"cannot tell the format of the trace {self.path}: "
                f"say --format with one of {', '.join(FORMATS)}"
            )
        return told

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Access]:
        records = _orm(self._stream) if self.format == "orm" else self._lines()
        try:
            for access in records:
                self.report.accesses += 1
                yield access
        except _READ_ERRORS as error:
            self.report.truncated = (
                f"the file ends early after {self.report.accesses} accesses ({_reason(error)})"
            )
        if self.report.accesses == 0:
            raise TraceError(
                f"not one good access in the trace {self.path} read as {self.format}: "
                + ("; ".join(self.report.examples) or self.report.truncated or "no lines")
            )

    def _lines(self) -> Iterator[Access]:
        parse: Callable[[list[str]], Iterator[Access]] | None = None
        for number in itertools.count(1):
            raw = self._stream.readline(LINE_MAX_BYTES)
            if not raw:
                return
            if len(raw) == LINE_MAX_BYTES and not raw.endswith(b"\n"):
                self.report.skip(f"line {number}", f"longer than {LINE_MAX_BYTES} bytes")
                _skip_line(self._stream)
                continue
            # latin-1 maps every byte to one character and back: a key is never altered.
            line = raw.decode("latin-1").strip("\r\n\t ")
            if not line:
                continue
            cells = (
                [cell.strip() for cell in line.lstrip("# ").split(",")] if number == 1 else line.split(",")
            )
            if number == 1 and (names := _header(cells)):
                parse = _by_name(names)
                continue
            if line.startswith("#"):
                continue
            parse = parse or _by_position(self.format)
            try:
                yield from parse(cells)
            except (ValueError, IndexError, OverflowError) as error:
                self.report.skip(f"line {number}", _complaint(error, cells))


def tell_format(head: bytes) -> Format | None:
    """The format of a trace from its first bytes, or None if they look like no known one."""
    text_like = sum(byte >= 0x20 or byte in b"\t\r\n" for byte in head[:4096])
    if b"\0" in head[:4096] or text_like < 0.9 * len(head[:4096]):
        return "orm" if len(head) >= 4 else None
    votes: dict[Format, int] = {}
    for number, line in enumerate(head.decode("latin-1").splitlines()[:100]):
        cells = [cell.strip() for cell in line.lstrip("# ").split(",")]
        if number == 0 and (names := _header(cells)):
            return "meta" if "op_count" in names else "csv" if "op" in names else "libcachesim"
        if voted := _format_of_row(cells):
            votes[voted] = votes.get(voted, 0) + 1
    return max(votes.items(), key=lambda vote: vote[1])[0] if votes else None


def _format_of_row(cells: list[str]) -> Format | None:
    if len(cells) >= 7 and cells[5].lower() in _OPS:
        return "twitter"
    if len(cells) >= 3 and _is_number(cells[0]):
        if cells[1].lower() in _OPS:
            return "csv"
        if _is_number(cells[2]):
            return "libcachesim"
    return None


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def _header(cells: list[str]) -> dict[str, int] | None:
    """Column positions by keyheat's names for them, if the line is a header with at least a key."""
    found: dict[str, int] = {}
    lowered = [cell.lower() for cell in cells]
    for ours, theirs in _COLUMNS.items():
        for name in theirs:
            if name in lowered:
                found.setdefault(ours, lowered.index(name))
    return found if "key" in found and len(found) > 1 else None


def _by_name(at: dict[str, int]) -> Callable[[list[str]], Iterator[Access]]:
    time_at, op_at, size_at, count_at, ttl_at = (
        at.get(name) for name in ("time", "op", "size", "op_count", "ttl")
    )
    key_at, last = at["key"], max(at.values())

    def parse(cells: list[str]) -> Iterator[Access]:
        if len(cells) <= last:
            raise IndexError
        access = _access(
            cells[time_at] if time_at is not None else None,
            cells[op_at] if op_at is not None else "get",
            cells[key_at],
            cells[size_at] if size_at is not None else "0",
            cells[ttl_at] if ttl_at is not None else "0",
        )
        # Meta folds the equal operations of one second into one line; unfolded, they are accesses each.
        count = int(cells[count_at]) if count_at is not None else 1
        if count < 1:
            raise ValueError("a count below 1")
        return itertools.repeat(access, count)

    return parse


def _by_position(fmt: Format) -> Callable[[list[str]], Iterator[Access]]:
    def libcachesim(cells: list[str]) -> Iterator[Access]:
        return iter((_access(cells[0], "get", cells[1], cells[2]),))

    def plain(cells: list[str]) -> Iterator[Access]:
        size = cells[3] if len(cells) > 3 else "0"
        return iter((_access(cells[0], cells[1], cells[2], size),))

    def twitter(cells: list[str]) -> Iterator[Access]:
        # A key may hold commas: count the other columns from the end.
        if len(cells) < 7:
            raise IndexError
        key = ",".join(cells[1:-5])
        return iter((_access(cells[0], cells[-2], key, cells[-4], cells[-1]),))

    return {"libcachesim": libcachesim, "twitter": twitter}.get(fmt, plain)


def _access(at: str | None, op: str, key: str, size: str, ttl: str = "0") -> Access:
    key = key.strip()
    if not key:
        raise ValueError("no key")
    op = op.strip().lower()
    if not op:
        raise ValueError("no operation")
    at_s = float(at) if at is not None else None
    if at_s is not None and not 0 <= at_s < 1e18:
        raise ValueError("a time that is not one")
    size_bytes = int(size or 0)
    if not 0 <= size_bytes <= _VALUE_MAX_BYTES:
        raise ValueError("a size that is not one")
    ttl_s = int(float(ttl or 0))
    return Access(at_s, op, key.encode("latin-1"), size_bytes, ttl_s if 0 < ttl_s < _TTL_MAX_S else 0)


def _complaint(error: Exception, cells: list[str]) -> str:
    if isinstance(error, IndexError):
        return f"only {len(cells)} columns"
    reason = str(error)
    return (
        "a column that should be a number is none" if "convert" in reason or "literal" in reason else reason
    )


def _orm(stream: IO[bytes]) -> Iterator[Access]:
    # bits 27-31 type, the rest names the object; no time and no operation: they are reads.
    names: dict[int, str] = {kind: f"orm:{kind}:" for kind in range(32)}
    rest = b""
    while block := stream.read(1 << 16):
        whole = rest + block
        usable = len(whole) & ~3
        rest = whole[usable:]
        for start in range(0, usable, 4):
            number = int.from_bytes(whole[start : start + 4], "big")
            yield Access(None, "get", f"{names[number >> 27]}{number & 0x7FF_FFFF}".encode(), 0)
    if rest:
        raise EOFError(f"{len(rest)} bytes left over")


def _decompressed(raw: io.BufferedReader) -> io.BufferedReader:
    magic = raw.peek(6)[:6]
    opened: Any
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard  # noqa: PLC0415 - only .zst traces need it

        opened = _ZstdRaw(
            zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(raw, read_across_frames=True)
        )
    elif magic.startswith(b"\xfd7zXZ\0"):
        opened = lzma.LZMAFile(raw)  # noqa: SIM115 - the reader closes it
    elif magic.startswith(b"\x1f\x8b"):
        opened = gzip.GzipFile(fileobj=raw)
    else:
        return raw
    return io.BufferedReader(opened, _PEEK_BYTES)


class _ZstdRaw(io.RawIOBase):
    """zstandard's reader with its own error type turned into the EOFError the others raise."""

    def __init__(self, reader: IO[bytes]) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytearray", buffer))
        import zstandard  # noqa: PLC0415 - loaded by _opened already

        try:
            block = self._reader.read(len(view))
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        view[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._reader.close()
        super().close()


def _skip_line(stream: IO[bytes]) -> None:
    while (more := stream.readline(LINE_MAX_BYTES)) and not more.endswith(b"\n"):
        pass


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
