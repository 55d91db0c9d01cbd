"""A connection in RESP2 without a client library: nothing is tried again, and nothing is between."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

Word = bytes | str | int


class Refused(str):
    """An error reply."""

    __slots__ = ()


class Wire:
    """A connection to `host:port`; an `OSError` or `EOFError` means that it is of no use any more."""

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")

    def send(self, *commands: Sequence[Word]) -> None:
        """Send commands as one piece."""
        self._socket.sendall(b"".join(map(encoded, commands)))

    def ask(self, *command: Word) -> Any:
        """Send one command and wait for its reply."""
        self.send(command)
        return self.reply()

    def reply(self) -> Any:
        """The next reply; errors come as `Refused`."""
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("the connection has ended")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return self._bulk(int(rest))
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            return Refused(rest.decode(errors="replace"))
        if kind == b"*":
            return None if rest == b"-1" else [self.reply() for _ in range(int(rest))]
        raise EOFError(f"no reply begins with {line[:20]!r}")

    def close(self) -> None:
        """End it, whatever is still under way."""
        self._replies.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bulk(self, size: int) -> bytes | None:
        if size < 0:
            return None
        body = self._replies.read(size + 2)
        if len(body) != size + 2:
            raise EOFError("the connection has ended within a reply")
        return body[:-2]


def take_turns(
    address: str, over: threading.Event, turn: Callable[[Wire], bool], failed: Callable[[Exception], None]
) -> None:
    """Take turns on a connection until it is over, and on another one whenever that is of no use any more.

    Args:
        turn: Says whether the connection is still there.
        failed: Is told why one was lost.
    """
    wire: Wire | None = None
    while not over.is_set():
        try:
            wire = wire or Wire(address)
            if not turn(wire):
                wire = None
        except (OSError, EOFError) as error:
            failed(error)
            if wire is not None:
                wire.close()
            wire = None
            time.sleep(0.005)
    if wire is not None:
        wire.close()


def encoded(command: Sequence[Word]) -> bytes:
    """A command as bytes."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
