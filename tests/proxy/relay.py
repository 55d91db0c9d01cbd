"""A TCP relay that a test can freeze: a connection that looks open and carries nothing.

That is what a half-open connection, a dropped packet filter or a dead middle box looks like from
here: no end, no error, no byte.
"""

import socket
import threading


class Relay:
    """Relays connections to `address`; those that turned tracking on can be frozen or cut."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._tracking: set[socket.socket] = set()
        self._frozen: set[socket.socket] = set()
        self._may_flow = threading.Event()
        self._may_flow.set()
        self._is_refusing = False
        self._is_closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where to connect."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def freeze_tracking(self) -> None:
        """Carry nothing more, either way, on connections that turned tracking on."""
        self._may_flow.clear()

    def freeze_open(self) -> None:
        """Carry nothing more on the connections there are; new ones work."""
        with self._lock:
            self._frozen = {each for pair in self._pairs for each in pair}
        self._may_flow.clear()

    def thaw(self) -> None:
        """Carry again, beginning with what was held back."""
        self._may_flow.set()

    def cut_tracking(self) -> int:
        """End the connections that turned tracking on; returns how many there were."""
        with self._lock:
            cut = list(self._tracking)
            self._tracking.clear()
        for each in cut:
            each.shutdown(socket.SHUT_RDWR)
        return len(cut)

    def close(self) -> None:
        """End everything."""
        self._is_closed = True
        self._may_flow.set()
        self._listener.close()
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for each in pair:
                each.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                downstream, _ = self._listener.accept()
            except OSError:
                return
            try:
                upstream = socket.create_connection(self._upstream)
            except OSError:  # the server is down, and so is what leads to it
                downstream.close()
                continue
            for each in (downstream, upstream):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((downstream, upstream))
            threading.Thread(target=self._carry, args=(downstream, upstream, upstream), daemon=True).start()
            threading.Thread(target=self._carry, args=(upstream, downstream, upstream), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, upstream: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if b"TRACKING" in data and source is not upstream:
                    with self._lock:
                        self._tracking.add(upstream)
                with self._lock:
                    is_frozen = upstream in self._tracking or upstream in self._frozen
                if is_frozen:
                    self._may_flow.wait()
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        # Each direction ends its own source; the other side's is ended by the other direction.
        source.close()
