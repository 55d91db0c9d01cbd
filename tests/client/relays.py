"""A relay with more ways to fail: refusing connections, and swallowing what a server announces."""

import contextlib
import re
import socket
import threading

from tests.proxy.relay import Relay

_PUSH = re.compile(rb">2\r\n\$10\r\ninvalidate\r\n(?:\*1\r\n\$\d+\r\n[^\r]*\r\n|_\r\n)")


class FaultyRelay(Relay):
    """As `Relay`; may refuse connections, and may be made deaf for invalidations."""

    def __init__(self, address: str) -> None:
        self.is_deaf = False
        self.swallowed = 0
        super().__init__(address)

    def refuse(self) -> None:
        """Refuse new connections; those there are go on."""
        self._port = self._listener.getsockname()[1]
        # Closing alone would leave the accepting thread, and with it the kernel's queue, in place.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def accept_again(self) -> None:
        """Accept connections again, at the same port."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, upstream: socket.socket) -> None:
        super()._carry(_Deaf(source, self) if source is upstream else source, target, upstream)  # type: ignore[arg-type]


class _Deaf:
    """A server's side of a connection, from which announcements can be taken out.

    This is the planted bug of the staleness tests: heartbeats are answered, changes are not told. A
    checker that finds nothing here would find nothing anywhere.
    """

    def __init__(self, sock: socket.socket, relay: FaultyRelay) -> None:
        self._socket = sock
        self._relay = relay

    def recv(self, size: int) -> bytes:
        """What the server says, without what it announces."""
        while data := self._socket.recv(size):
            if not self._relay.is_deaf:
                return data
            kept, count = _PUSH.subn(b"", data)
            self._relay.swallowed += count
            if kept:
                return kept
        return b""

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def shutdown(self, how: int) -> None:
        """End it."""
        self._socket.shutdown(how)
