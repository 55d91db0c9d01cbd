"""The native module: the data plane in Rust threads, running without the interpreter's lock."""

from collections.abc import Callable
from typing import Any, final

class Proxy:
    """A proxy in front of one upstream, in threads of its own."""

    def __init__(self, settings_json: str) -> None:
        """Take settings as JSON; a ValueError names the key that is wrong."""

    def start(self) -> None:
        """Bind and serve; OSError if the address is taken. The upstream may still be down."""

    @property
    def listen(self) -> str:
        """The address clients connect to, with the port that was really bound; empty if there is none."""

    @property
    def tls_listen(self) -> str | None:
        """The same for clients that speak TLS."""

    @property
    def http(self) -> str | None:
        """The address of /healthz, /metrics and /api/hot."""

    def hot(self) -> str:
        """The JSON of /api/hot."""

    def stats(self) -> str:
        """All counters as JSON."""

    def metrics(self) -> str:
        """The text of /metrics."""

    def upstream_error(self) -> str:
        """Why the upstream cannot be used now; empty if it can."""

    def reload(self, settings_json: str) -> list[str]:
        """Take over what may change while running; the names of the settings that may not, and would.

        A ValueError names what is wrong, and nothing has changed.
        """

    @staticmethod
    def log(level: str, text: str) -> None:
        """Write a line of the log: `error`, `warn` or `info`."""

    def feed(self, json: str) -> None:
        """Say what is hot, as `PUT /api/hot` does; a ValueError says what is wrong with it."""

    def set_local_cache(self, on: bool) -> None:
        """Switch the local cache on or off while running."""

    def drain(self, timeout_s: float) -> bool:
        """Accept no more, finish what is in flight; True if all of it was answered."""

    def stop(self) -> None:
        """Stop at once."""

@final
class MissType:
    """The type of `MISS`."""

MISS: MissType

@final
class Engine:
    """What runs behind the protected clients of one deployment: counts, hot set, cache, one thread."""

    def __init__(
        self, settings_json: str, dial: Callable[[str, int, float], tuple[str, int, Any]], is_cluster: bool
    ) -> None:
        """Start; a ValueError names the setting that is wrong.

        `dial(host, port, timeout_s)` opens a connection on a thread of the engine's: `("fd", fd, "")`,
        `("tls", fd, handover)`, `("refused", -1, why)` or `("unreachable", -1, why)`.
        """

    def set_switch(self, name: str, on: bool) -> None:
        """Switch `counting`, `local_cache`, `coalesce` or `shadow` while running."""

    def switch(self, name: str) -> bool:
        """Whether that is on."""

    def set_owners(self, owners: list[tuple[int, int, str, int]]) -> None:
        """Say who owns which slots: (first, last, host, port), ends included."""

    def _plant(self, bug: str) -> None:
        """Break a promise on purpose, for tests of the checkers: `missing-fence`, `deaf`."""

    def rest(self) -> None:
        """Close the connections; they are opened again when a hot key is asked for."""

    def clear(self) -> None:
        """Drop every cached value."""

    def stats(self) -> str:
        """All counters as JSON."""

    def hot(self) -> str:
        """The hot keys as JSON."""

    def explain(self, key: bytes) -> str:
        """What is known of one key, as JSON."""

    def stop(self, timeout_s: float) -> None:
        """End the thread; from then on everything goes to the server."""

@final
class Guard:
    """One protected client: each of its commands enters and leaves here."""

    def __init__(
        self, engine: Engine, variant: int, encode: Callable[[Any], bytes], is_utf8: bool, own: type[Any]
    ) -> None:
        """`variant` stands for the client settings that change a decoded reply; `own` is its class."""

    @property
    def engine(self) -> Engine:
        """The engine behind it."""

    @property
    def may_read_locally(self) -> bool:
        """Whether reads of this client may be answered from memory."""

    @property
    def has_hot_keys(self) -> bool:
        """Whether any key is hot, so that `enter` can be of use."""

    def switch_off(self) -> None:
        """Have every read of this client go to the server from now on."""

    def enter(self, args: tuple[Any, ...], options: dict[str, Any], /) -> Any:
        """Decide about a command: `MISS` (send it), a value, a `Lead` or a `Join`."""

    def leave(self, args: tuple[Any, ...], reply: Any, /) -> bool:
        """Count a command whose reply is there, and void what it may have changed.

        Returns whether any key is hot, so that the next command should `enter`.
        """

    def failed(self, args: tuple[Any, ...], /) -> None:
        """As `leave`, for one that failed, so that its outcome may be unknown."""

    def count(self, args: tuple[Any, ...], reply: Any, /) -> None:
        """As `leave`, for a command that was not sent by the client itself."""

    def route(self, args: tuple[Any, ...], /) -> tuple[bool, list[tuple[bytes, int]]] | None:
        """Whether a command may write, and each key with where its reads may go (1 copies, 2 replicas)."""

    def first_key(self, args: tuple[Any, ...], /) -> bytes | None:
        """The first key that a command names."""

    def is_blocking(self, args: tuple[Any, ...], /) -> bool:
        """Whether a command may wait in the server on purpose."""

    def void_for(self, args: tuple[Any, ...], /) -> None:
        """Void what a command may change."""

@final
class Lead:
    """A read that goes to the server for the cache, for those who joined, or both."""

    @property
    def is_fill(self) -> bool:
        """Whether the value will be kept, if it is good."""

    @property
    def key(self) -> bytes:
        """The key that is read."""

    @property
    def node(self) -> tuple[str, int] | None:
        """Host and port of the node that the value must come from."""

    @property
    def process(self) -> str | None:
        """The `run_id` of the server process that the value must come from."""

    def disown(self) -> None:
        """The value does not certainly come from there: it is not kept."""

    def end(self, reply: Any) -> None:
        """Hand in what the server said."""

    def fail(self) -> None:
        """There was no reply."""

@final
class Join:
    """Somebody else's read under way."""

    def value(self) -> Any:
        """The value, or `MISS` where there is none, or none yet."""

    def on_end(self, callback: Callable[[], object]) -> None:
        """Have `callback` called when the read has ended, on the thread that ends it."""

@final
class LocalCache:
    """Values by key in bounded memory, each until it is too old; counts what is asked for.

    Nothing invalidates it but its owner and time: `keyheat.protect` is what ties values to a server.
    Replacement is S3-FIFO (Yang et al., SOSP 2023). Thread-safe; a forked child has a copy.
    """

    def __init__(
        self, *, max_bytes: int = 67_108_864, max_entries: int = 65_536, max_age_s: float = 1.0
    ) -> None:
        """`max_bytes` counts what Python holds for the values as well; ValueError names what is wrong."""

    def get(self, key: str | bytes, default: Any = None, /) -> Any:
        """The value of `key`, or `default`. A list, dict or set is the caller's own copy."""

    def set(self, key: str | bytes, value: Any, /, ttl_s: float | None = None) -> bool:
        """Keep a copy of `value` for `ttl_s` seconds, at most `max_age_s`. Returns whether it is kept.

        Too large a value is not, nor one that whoever gets it could change: anything but numbers, text,
        bytes, and lists, tuples, dicts and sets of them.
        """

    def delete(self, key: str | bytes, /) -> bool:
        """Drop the value of `key`. Returns whether there was one."""

    def clear(self) -> None:
        """Drop everything."""

    def __len__(self) -> int:
        """How many values are kept."""

    def stats(self) -> dict[str, int]:
        """`hits`, `misses`, `refused`, `entries`, `bytes`."""

    def reads(self, key: str | bytes, /) -> tuple[int, int]:
        """How often `key` was asked for in about the last second: at least, and at most."""

def install_execute_command(cls: type[Any], /) -> None:
    """Give a protected class, which stands before the client's own, the native `execute_command`."""

def now_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds, the clock of `since_ns`."""

def slot(key: bytes) -> int:
    """The Cluster slot of a key, hash tags included."""

def copies_script(name: str) -> str:
    """The Lua of one step of copies: lease, move, place or fence; KeyError for another."""

def version() -> str:
    """The version of the native module, which is that of the package."""
