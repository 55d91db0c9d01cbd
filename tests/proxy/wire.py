"""Commands and replies as the bytes they are on the wire."""

import contextlib
import socket

Command = list[bytes]


class Wire:
    """A connection that keeps each reply as the bytes it came in."""

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._at = 0

    def close(self) -> None:
        """End it without a word."""
        self.socket.close()

    def send(self, commands: list[Command]) -> None:
        """Send all in one piece."""
        self.socket.sendall(b"".join(map(encode, commands)))

    def reply(self) -> bytes:
        """The next whole reply, pushes included."""
        self._at = 0
        self._skip_one()
        frame = bytes(self._buffer[: self._at])
        del self._buffer[: self._at]
        return frame

    def ask(self, *words: str | bytes) -> bytes:
        """One command, one reply."""
        self.send([command(*words)])
        return self.reply()

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError
        self._buffer += data

    def _skip_one(self) -> None:
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            self._more()
        kind, number = bytes(self._buffer[self._at : self._at + 1]), bytes(self._buffer[self._at + 1 : end])
        self._at = end + 2
        if kind in {b"$", b"="} and int(number) >= 0:
            self._at += int(number) + 2
            while len(self._buffer) < self._at:
                self._more()
        elif kind in {b"*", b"~", b">", b"%"}:
            for _ in range(max(int(number), 0) * (2 if kind == b"%" else 1)):
                self._skip_one()


def ask(address: str, *words: str) -> bytes:
    """One command on a connection of its own."""
    with contextlib.closing(Wire(address)) as wire:
        return wire.ask(*words)


def tell(address: str, *lines: str) -> None:
    """Commands that are answered `OK`."""
    for line in lines:
        assert ask(address, *line.split()) == b"+OK\r\n", line


def command(*words: str | bytes) -> Command:
    """The words of a command as bytes."""
    return [word if isinstance(word, bytes) else word.encode() for word in words]


def encode(words: Command) -> bytes:
    """A command as RESP."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def words(text: str) -> Command:
    """A command of words without spaces."""
    return command(*text.split())


def say(wire: Wire, *commands: str | Command) -> list[bytes]:
    """Send all at once, and read as many replies."""
    batch = [words(each) if isinstance(each, str) else each for each in commands]
    wire.send(batch)
    return [wire.reply() for _ in batch]
