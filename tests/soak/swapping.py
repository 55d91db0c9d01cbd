"""A relay with a planted fault: now and then two clients get each other's replies."""

import contextlib
import socket
import threading

from tests.proxy.relay import Relay

_EVERY = 400


class SwappingRelay(Relay):
    """Relays what clients send, and every so many replies holds one back for the next client."""

    def __init__(self, address: str) -> None:
        self._swap = threading.Lock()
        self._seen = 0
        self._held: bytes | None = None
        super().__init__(address)

    def _carry(self, source: socket.socket, target: socket.socket, upstream: socket.socket) -> None:
        given = _Swapped(source, self) if source is upstream else source
        super()._carry(given, target, upstream)  # type: ignore[arg-type]

    def close(self) -> None:
        """End everything, at once for those who wait too."""
        for pair in list(self._pairs):
            for each in pair:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        super().close()

    def exchanged(self, data: bytes) -> bytes:
        """What goes out in place of `data`; one chunk in `_EVERY` is that of another connection."""
        with self._swap:
            self._seen += 1
            if self._seen % _EVERY:
                return data
            held, self._held = self._held, data
            return held or data


class _Swapped:
    """The server's side of a connection."""

    def __init__(self, sock: socket.socket, relay: SwappingRelay) -> None:
        self._socket = sock
        self._relay = relay

    def recv(self, size: int) -> bytes:
        data = self._socket.recv(size)
        return self._relay.exchanged(data) if data else b""

    def close(self) -> None:
        self._socket.close()

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)
