"""How a process waits for another's load: for the holder's word, or by looking now and then.

Those who wait block on a stream beside the key (`XREAD BLOCK`), to which the holder adds one entry. A
stream wakes everybody with one write, it remembers, so that nobody can miss the entry between looking and
waiting, and it needs no connection of a kind of its own, as pub/sub does (which in a Cluster differs by
client library). Refused: a list (the holder would have to know how many wait), polling alone (its commands
grow with the load time). Each wait takes a connection of the pool: beyond `pushes_max`, or where `XREAD`
is not allowed, a waiter polls with growing, jittered pauses.
"""

import random
import threading
from typing import Any, Final, cast

from keyheat.errors import LoadFailedError
from keyheat.mitigate._checks import OnceLogger
from keyheat.mitigate._commands import Client, Command, Reply, is_cluster
from keyheat.mitigate.failures import is_client_error, is_node_failure
from keyheat.mitigate.lease_keys import LeaseKeys
from keyheat.mitigate.steps import Sleep, Steps

_BLOCK_MAX_S: Final = 2.0
_SOCKET_TIMEOUT_S: Final = 5.0  # redis-py's default
_JITTER_S: Final = 0.020
_POLL_MIN_S: Final = 0.005
_POLL_MAX_S: Final = 0.040


class LeaseWaiting:
    """Waits for other processes, of all keys of one `Lease`.

    Args:
        client: The lease's.
        pushes_max: Connections that may wait for a wake-up at once; beyond, waiters poll.
    """

    def __init__(self, client: Client, pushes_max: int) -> None:
        self._client = client
        self._pushes_max = pushes_max
        self._block_max_s = _block_max_s(client)
        self._can_push = True
        self._said = OnceLogger("keyheat.mitigate.lease")
        self.pushes = 0
        self.polls = 0
        self.start_empty()

    def start_empty(self) -> None:
        """Nobody waits; for a forked child."""
        self._lock = threading.RLock()
        self._pushing = 0

    def steps(self, keys: LeaseKeys, lease_left_s: float, attempt: int) -> Steps[None]:
        """Wait for the holder's word, at most until its lease ends.

        Args:
            keys: What is waited for.
            lease_left_s: Until the lease ends, if it is not renewed.
            attempt: How often the caller has waited before.

        Raises:
            LoadFailedError: The word is that its load failed.
        """
        if not self._take_push():
            yield from self._poll(attempt)
            return
        # A little over the end of the lease, differently for each: not all come back at once.
        wait_s = min(max(0.0, lease_left_s), self._block_max_s) + random.random() * _JITTER_S
        try:
            outcome = yield from self._pushed(keys, wait_s)
        except Exception as error:
            if not is_client_error(error):
                raise
            if not is_node_failure(error):
                self._can_push = False
                self._said.warning("push", "XREAD is refused (%s): polling instead", type(error).__name__)
            yield from self._poll(attempt)
            return
        finally:
            with self._lock:
                self._pushing -= 1
        kind, _, what = outcome.partition(b":")
        if kind == b"failed":
            raise LoadFailedError(f"another process was loading this key, and failed: {what.decode()}")

    def _take_push(self) -> bool:
        with self._lock:
            if not self._can_push or self._pushing >= self._pushes_max:
                return False
            self._pushing += 1
            self.pushes += 1
            return True

    def _pushed(self, keys: LeaseKeys, wait_s: float) -> Steps[bytes]:
        words = ("XREAD", "COUNT", 1, "BLOCK", max(1, int(wait_s * 1000)), "STREAMS", keys.wake, 0)
        options: dict[str, Any] = {"NEVER_DECODE": True}
        if is_cluster(self._client):
            # The client would ask the server where the keys of an XREAD are, and might pick a replica.
            options["target_nodes"] = self._client.get_node_from_key(keys.wake)
        reply = yield Command(self._client, words, options)
        return _last_word(reply)

    def _poll(self, attempt: int) -> Steps[None]:
        self.polls += 1
        pause_s = min(_POLL_MAX_S, _POLL_MIN_S * 2.0 ** min(attempt, 10))
        yield Sleep(pause_s * (0.5 + random.random() / 2))


def _block_max_s(client: Client) -> float:
    """How long a command may block before the client itself would give up on the connection."""
    told = client.get_connection_kwargs().get("socket_timeout", _SOCKET_TIMEOUT_S)
    return min(_BLOCK_MAX_S, (told or _SOCKET_TIMEOUT_S) * 0.4)


def _last_word(reply: Reply) -> bytes:
    """The last value of the entry read, whatever shape the protocol version gives it; empty if none."""
    while reply:
        if isinstance(reply, dict):
            reply = list(reply.values())[-1]
        elif isinstance(reply, list | tuple):
            reply = reply[-1]
        else:
            return cast("bytes", reply)
    return b""
