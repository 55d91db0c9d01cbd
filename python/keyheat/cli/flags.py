"""The flags of `keyheat proxy`: one for each setting, of its name.

A table and no more, so that `--help` need not load the settings; a test holds the two together. What a flag
is given is checked where the file's values are.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

# Setting: (what it takes, what it does). A setting that is on or off takes nothing.
FLAGS: Final[dict[str, tuple[str, str]]] = {
    "listen": ("HOST:PORT", "Where clients connect."),
    "reuse_port": ("", "Let other proxies listen at the same TCP addresses."),
    "tls_listen": ("HOST:PORT", "Where clients that speak TLS connect."),
    "tls_cert_file": ("FILE", "The certificate that those are shown, in PEM."),
    "tls_key_file": ("FILE", "Its key, in PEM."),
    "tls_client_ca_file": ("FILE", "Certificates of which one must vouch for such a client."),
    "proxy_protocol": ("HOW", "required: clients come through balancers that say for whom; or off."),
    "proxy_protocol_trusted": ("NETWORKS", "Where those balancers are: 10.0.0.0/8,fd00::/8."),
    "handshake_timeout_ms": ("MS", "How long a client may take until it can send its first request."),
    "unix_socket": ("PATH", "A Unix socket at which clients of this host connect as well."),
    "unix_socket_mode": ("OCTAL", "Permissions of that socket: who may connect."),
    "announce": ("HOST:PORT", "Where clients of a Cluster are told to connect, if not where they did."),
    "http": ("HOST:PORT", "/healthz, /metrics and /api/hot; 'none' for no http."),
    "upstream": ("URL", "The server or Cluster behind: redis[s]://host[:port][,host[:port]…][/db]."),
    "auth": ("WHO", "Who judges clients' passwords: proxy, or pass_through for the server itself."),
    "upstream_username": ("NAME", "ACL user of the proxy's own account."),
    "upstream_password_file": ("FILE", "The file that holds the password of that account."),
    "upstream_tls_ca_file": ("FILE", "Who is believed on a server's certificate; else the system's."),
    "upstream_tls_cert_file": ("FILE", "The proxy's own certificate, for servers that ask for one."),
    "upstream_tls_key_file": ("FILE", "Its key; without, it is in the same file."),
    "upstream_tls_verify": ("HOW", "full, ca (any name) or none (whoever answers is believed)."),
    "sentinel_username": ("USER", "The account at the Sentinels, which is not that of the servers."),
    "sentinel_password_file": ("FILE", "A file that holds its password."),
    "connect_timeout_ms": ("MS", "How long connecting to a node may take."),
    "upstream_timeout_ms": ("MS", "How long what was sent to a node may go unacknowledged."),
    "breaker": ("", "Leave a node that keeps failing alone for a while."),
    "breaker_window_ms": ("MS", "Over which the outcomes of a node's requests are counted."),
    "breaker_calls_min": ("N", "Fewer requests than this within the window never open it, per thread."),
    "breaker_error_rate": ("SHARE", "Share of failed requests that opens it."),
    "breaker_slow_ms": ("MS", "An answer that takes longer is slow."),
    "breaker_slow_rate": ("SHARE", "Share of slow answers that opens it; above 1: never."),
    "breaker_silence_ms": ("MS", "A node that answers nothing at all for so long is failing."),
    "breaker_open_ms": ("MS", "The first pause; each further one in a row is twice as long."),
    "breaker_open_max_ms": ("MS", "The longest pause."),
    "breaker_probes_at_once": ("N", "Requests let through at once to find out, per thread."),
    "breaker_probes_needed": ("N", "Answers in a row that end it."),
    "breaker_recovery_ms": ("MS", "Until all requests pass again; 0: at once."),
    "congestion": ("", "Limit what is on its way to a node at once."),
    "congestion_limit_max": ("N", "The most requests on their way to a node, per thread."),
    "congestion_limit_min": ("N", "The least that the limit falls to, per thread."),
    "congestion_queue_max": ("N", "Places in line for a node, per thread."),
    "congestion_queue_timeout_ms": ("MS", "How long a request waits in line."),
    "stale_on_error_ms": ("MS", "How stale a hot key's value may be while its node cannot answer; 0: never."),
    "replica_reads": ("", "Read from replicas where read_from or a plan says so."),
    "read_from": ("WHERE", "primary, prefer-replica, replica or hot-only."),
    "read_your_writes": (
        "WHOSE",
        "Whose writes a read from a replica shows: none, connection, proxy or global.",
    ),
    "replica_lag_max_ms": ("MS", "How far behind a replica may be to be read from; 0: any."),
    "copies": ("", "Copy hot keys whose rule's plan has copies."),
    "copies_max": ("N", "Copies of a key beside the original; 0: one on every other primary."),
    "copies_max_staleness_ms": ("MS", "No copy is older."),
    "copies_clock_skew_ms": ("MS", "By how much the clocks of primaries may differ."),
    "copies_value_max_bytes": ("BYTES", "Larger values are not copied."),
    "copies_keys_max": ("N", "Keys copied at a time."),
    "rules_file": ("FILE", "Rules in TOML; without it, documented defaults."),
    "counting": ("", "Count accesses; without, no key is ever hot."),
    "hot_set": ("WHO", "Who says what is hot: counted by the proxy, or fed by others."),
    "feed_token_file": ("FILE", "A file with the token that PUT /api/hot must show."),
    "window_ms": ("MS", "The sliding window of the counts."),
    "hot_keys_max": ("N", "Keys in the hot set at most."),
    "local_cache": ("", "Answer hot keys locally."),
    "nx_is_lock": ("", "Take keys that are set only if they are not there for locks, and leave them alone."),
    "max_staleness_ms": ("MS", "How old a read of a hot key may be at most; 0: none is answered locally."),
    "cache_bytes": ("BYTES", "Memory of the local cache."),
    "cache_value_max_bytes": ("BYTES", "The largest reply that is cached."),
    "longer_expiry_factor_max": ("N", "An expiry becomes at most so many times as long."),
    "longer_expiry_max_s": ("S", "No expiry is made longer than this."),
    "shards": ("N", "Threads; 0 for one per core but one."),
    "clients_max": ("N", "Client connections at most."),
    "client_idle_timeout_s": ("S", "How long a client may say nothing; 0 is for ever."),
    "client_output_max_bytes": ("BYTES", "What one client may leave unread; 0 for no bound of its own."),
    "request_max_bytes": ("BYTES", "The longest request."),
    "buffers_max_bytes": ("BYTES", "Requests and replies held at most."),
    "drain_timeout_s": ("S", "How long to finish what is in flight at the end."),
    "log": ("LEVEL", "error, warn, info or debug."),
    "log_format": ("HOW", "text or json: one JSON object per line."),
    "redact_keys": ("", "Show hashes in place of keys."),
    "metrics_hot_keys": ("N", "Of how many of the hottest keys /metrics has series."),
}
# Tables fit a file only.
WITHOUT_FLAG: Final = frozenset({"rules", "longer_expiry"})


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, which takes them as keywords, an option for each setting; None where it is not used."""
    own = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    options = [_option(setting, takes, does) for setting, (takes, does) in FLAGS.items()]
    parameters = [*own, *options]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _option(setting: str, takes: str, does: str) -> inspect.Parameter:
    name = setting.replace("_", "-")
    annotation: Any
    if takes:
        annotation = Annotated[str | None, typer.Option(f"--{name}", metavar=takes, help=does)]
    else:
        annotation = Annotated[bool | None, typer.Option(f"--{name}/--no-{name}", help=does)]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(setting, kind, default=None, annotation=annotation)


ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings in TOML; a flag overrides its key.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Say whether the settings can be used, and start nothing.")
]
