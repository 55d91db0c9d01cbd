"""A breaker for each node of a protected client: commands to one that keeps failing end at once."""

import importlib
import threading
from dataclasses import asdict
from typing import Any

from keyheat._keyheat import Guard, slot
from keyheat.errors import CircuitOpenError
from keyheat.mitigate._commands import is_cluster, library_of
from keyheat.mitigate.breaker import Breaker, BreakerSettings, Permit

_ONE = "the server"


class NodeBreakers:
    """The breakers of one deployment, shared by its clients in this process.

    Args:
        settings: When a breaker opens, and how it closes again.
    """

    def __init__(self, settings: BreakerSettings) -> None:
        self.enabled = True
        self._settings = settings
        self._by_node: dict[str, Breaker] = {}
        self._guard = threading.Lock()

    def permit(self, client: Any, guard: Guard, args: tuple[Any, ...]) -> Permit | None:
        """Permission to send a command to its node.

        Args:
            client: The client that sends it.
            guard: The client's.
            args: The command; empty for a pipeline.

        Returns:
            What has to be told the outcome; `None` where no breaker is asked: for commands that wait on
            purpose, and in a Cluster for those of no certain node.

        Raises:
            CircuitOpenError: The node has been failing. It is the library's `ConnectionError` too, for
                that is what the application handles.
        """
        if not self.enabled or (args and guard.is_blocking(args)):
            return None
        node = self._node_of(client, guard, args) if is_cluster(client) else _ONE
        if node is None:
            return None
        breaker = self._by_node.get(node)
        if breaker is None:
            with self._guard:
                self._forget_departed(client)
                breaker = self._by_node.setdefault(node, Breaker(node, self._settings))
        try:
            return breaker.acquire()
        except CircuitOpenError as error:
            raise _error_of(library_of(client))(*error.args, retry_after_s=error.retry_after_s) from None

    def stats(self) -> dict[str, dict[str, Any]]:
        """What each node's breaker has seen, by the node's name."""
        return {node: asdict(breaker.stats()) for node, breaker in list(self._by_node.items())}

    def _forget_departed(self, client: Any) -> None:
        if is_cluster(client):
            here = {str(node.name) for node in client.get_nodes()}
            self._by_node = {name: each for name, each in self._by_node.items() if name in here}

    def _node_of(self, client: Any, guard: Guard, args: tuple[Any, ...]) -> str | None:
        key = guard.first_key(args) if args else None
        nodes = client.nodes_manager.slots_cache.get(slot(key)) if key is not None else None
        return str(nodes[0].name) if nodes else None


_errors: dict[str, type[CircuitOpenError]] = {}


def _error_of(library: str) -> type[CircuitOpenError]:
    if library not in _errors:
        theirs = importlib.import_module(f"{library}.exceptions").ConnectionError

        def started(self: CircuitOpenError, *words: object, retry_after_s: float = 0.0) -> None:
            theirs.__init__(self, *words)
            self.retry_after_s = retry_after_s

        def reduced(self: CircuitOpenError) -> tuple[Any, ...]:
            return _unpickled, (library, self.args, self.retry_after_s)

        names = {"__module__": CircuitOpenError.__module__, "__init__": started, "__reduce__": reduced}
        _errors[library] = type(CircuitOpenError.__name__, (CircuitOpenError, theirs), names)
    return _errors[library]


def _unpickled(library: str, words: tuple[object, ...], retry_after_s: float) -> CircuitOpenError:
    return _error_of(library)(*words, retry_after_s=retry_after_s)
