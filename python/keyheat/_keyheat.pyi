"""The native module: the data plane in Rust threads, running without the interpreter's lock."""

class Proxy:
    """A proxy in front of one upstream, in threads of its own."""

    def __init__(self, settings_json: str) -> None:
        """Take settings as JSON; a ValueError names the key that is wrong."""

    def start(self) -> None:
        """Bind and serve; OSError if the address is taken. The upstream may still be down."""

    @property
    def listen(self) -> str:
        """The address clients connect to, with the port that was really bound."""

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

    def set_local_cache(self, on: bool) -> None:
        """Switch the local cache on or off while running."""

    def drain(self, timeout_s: float) -> bool:
        """Accept no more, finish what is in flight; True if all of it was answered."""

    def stop(self) -> None:
        """Stop at once."""

def now_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds, the clock of `since_ns`."""

def slot(key: bytes) -> int:
    """The Cluster slot of a key, hash tags included."""

def version() -> str:
    """The version of the native module, which is that of the package."""
