"""The command line: what can be said. What is done is in the other modules of this folder.

Exit status: 0 done, 1 it went wrong, 2 it was asked wrongly, 130 Ctrl-C cut it short. Errors are one
line on standard error. Only what `--help` needs is imported here; each command imports its own.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from keyheat.cli.flags import Check, ConfigFile, with_flags
from keyheat.errors import ConfigError, KeyheatError
from keyheat.observe.trace import FORMATS

app = typer.Typer(
    name="keyheat",
    help="Find the hot keys of any Redis or Valkey deployment, and make them harmless.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_JSON = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
_URL_FORM = "redis://[user:password@]host[:port][,host[:port]…][/db], redis+sentinel://…/service[/db]"


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"keyheat {version('keyheat')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    seconds: Annotated[int, typer.Option(min=20, max=58, help="How long it takes, set-up included.")] = 50,
    as_json: _JSON = False,
) -> None:
    """Show a flash sale on three local primaries, without and with keyheat.

    Everything runs on this machine: a Cluster of three Valkey primaries, the proxy, and unmodified redis-py
    clients reading by the popularity of a real trace. Nothing is left behind.
    """
    from keyheat.cli.demo import run

    raise typer.Exit(run(seconds=seconds, as_json=as_json))


@app.command()
def up(
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"{_URL_FORM}; without it, an embedded Valkey is started."),
    ] = None,
    auth: Annotated[
        str,
        typer.Option(
            metavar="WHO",
            help="Who judges clients' passwords: 'proxy', or 'pass_through' for the server itself.",
        ),
    ] = "proxy",
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where clients connect.")
    ] = "127.0.0.1:6380",
    unix_socket: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A Unix socket at which clients of this host connect as well."),
    ] = None,
    unix_socket_mode: Annotated[
        str, typer.Option(metavar="OCTAL", help="Permissions of that socket: who may connect.")
    ] = "600",
    announce: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="What clients of a Cluster are told, behind NAT."),
    ] = None,
    http: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="/healthz, /metrics and /api/hot; 'none' for no http.")
    ] = "127.0.0.1:6381",
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rules in TOML; without it, documented defaults.")
    ] = None,
    max_staleness: Annotated[
        int,
        typer.Option(
            metavar="MS",
            min=0,
            help="How old a read of a hot key may be at most; 0: none is answered locally.",
        ),
    ] = 100,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Find hot keys, but answer none locally.")
    ] = False,
    shards: Annotated[int, typer.Option(min=0, help="Threads; 0 for one per core but one.")] = 0,
    cache_bytes: Annotated[
        int | None, typer.Option(min=1, help="Memory of the local cache, in bytes.")
    ] = None,
    cache_value_max_bytes: Annotated[
        int | None, typer.Option(min=1, help="The largest reply that is cached, in bytes.")
    ] = None,
    hot_keys_max: Annotated[int | None, typer.Option(min=1, help="Keys in the hot set at most.")] = None,
    window: Annotated[
        int | None, typer.Option(metavar="MS", min=100, help="The sliding window of the counts.")
    ] = None,
    clients_max: Annotated[int | None, typer.Option(min=1, help="Client connections at most.")] = None,
    buffers_max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Requests and replies held at most, in bytes.")
    ] = None,
    upstream_timeout: Annotated[
        int | None,
        typer.Option(metavar="MS", min=1000, help="How long what was sent to a node may go unacknowledged."),
    ] = None,
    connect_timeout: Annotated[
        int | None, typer.Option(metavar="MS", min=1, help="How long connecting to a node may take.")
    ] = None,
    read_from: Annotated[
        str, typer.Option(metavar="WHERE", help="primary, prefer-replica, replica or hot-only.")
    ] = "primary",
    read_your_writes: Annotated[
        str,
        typer.Option(
            metavar="WHOSE",
            help="Whose writes a read from a replica shows: none, connection, proxy or global.",
        ),
    ] = "connection",
    replica_lag_max: Annotated[
        int,
        typer.Option(metavar="MS", min=0, help="How far behind a replica may be to be read from; 0: any."),
    ] = 1000,
    redact_keys: Annotated[bool, typer.Option("--redact-keys", help="Show hashes in place of keys.")] = False,
    drain_timeout: Annotated[
        float, typer.Option(metavar="S", min=0, help="How long to finish what is in flight at the end.")
    ] = 10.0,
    log: Annotated[str, typer.Option(help="error, warn, info or debug.")] = "info",
) -> None:
    """Start the proxy in front of a server or a Cluster.

    Ends on SIGTERM or Ctrl-C: accepts no more, answers what is in flight, and exits with 0 if all of it was
    answered in time, else with 1.
    """
    from keyheat.cli.up import UpOptions, run

    options = UpOptions(
        upstream=upstream,
        listen=listen,
        http=None if http == "none" else http,
        rules=rules,
        drain_timeout_s=drain_timeout,
        proxy={
            "auth": auth,
            "unix_socket": unix_socket,
            "unix_socket_mode": unix_socket_mode,
            "read_from": read_from,
            "read_your_writes": read_your_writes,
            "replica_lag_max_ms": replica_lag_max,
            "announce": announce,
            "max_staleness_ms": max_staleness,
            "local_cache": not no_cache,
            "shards": shards,
            "cache_bytes": cache_bytes,
            "cache_value_max_bytes": cache_value_max_bytes,
            "hot_keys_max": hot_keys_max,
            "window_ms": window,
            "clients_max": clients_max,
            "buffers_max_bytes": buffers_max_bytes,
            "connect_timeout_ms": connect_timeout,
            "upstream_timeout_ms": upstream_timeout,
            "redact_keys": redact_keys,
            "log": log,
        },
    )
    raise typer.Exit(run(options))


@app.command()
@with_flags
def proxy(config: ConfigFile = None, check: Check = False, **flags: str | bool | None) -> None:
    """Start the proxy as a service: from a file, flags, or both.

    There is a flag for each key of the file. Ends on SIGTERM or Ctrl-C like `keyheat up`; SIGHUP reads the
    file anew, and cuts no connection. Exit status 2 if a setting cannot be used, 1 if the proxy cannot be
    started or the drain took too long.
    """
    from keyheat.cli.proxy import check as check_only
    from keyheat.cli.proxy import run
    from keyheat.proxy.config import ConfigSource

    given = {name: value for name, value in flags.items() if value is not None}
    source = ConfigSource(config, given)
    raise typer.Exit(check_only(source) if check else run(source))


@app.command()
def hot(
    server: Annotated[
        str, typer.Option(metavar="URL", help="The http address of a running keyheat.")
    ] = "http://127.0.0.1:6381",
    as_json: Annotated[bool, typer.Option("--json", help="One object per key and line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(metavar="S", min=0.05, help="Seconds between looks of --watch.")
    ] = 1.0,
) -> None:
    """Show the keys that are hot now."""
    from keyheat.cli.hot import run

    raise typer.Exit(run(server, as_json=as_json, is_watching=watch, interval_s=interval))


@app.command()
def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help=f"A file: {', '.join(FORMATS)}; .zst, .xz, .gz or plain.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="URL", help=_URL_FORM)],
    speed: Annotated[
        float, typer.Option(min=0, help="Times faster than recorded; 0 for as fast as possible.")
    ] = 1.0,
    rate: Annotated[
        float | None,
        typer.Option(metavar="N", min=0.001, help="N accesses a second, whatever the trace's times."),
    ] = None,
    clients: Annotated[
        int, typer.Option(min=1, max=1000, help="Connections, spread over a process per core.")
    ] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many accesses.")] = None,
    fill: Annotated[
        bool, typer.Option("--fill", help="On a miss, SET the key with the trace's size.")
    ] = False,
    resp: Annotated[int, typer.Option(min=2, max=3, help="Protocol version.")] = 3,
    fmt: Annotated[
        str | None, typer.Option("--format", help=f"{', '.join(FORMATS)}; told from the content by default.")
    ] = None,
    as_json: _JSON = False,
) -> None:
    """Play a recorded trace as real commands through redis-py.

    A trace without operations is played as reads; with --fill a missing key is written after its first read,
    so that later reads find it. A trace without times is played as fast as possible, or at --rate. Exit
    status 1 if no command succeeded.
    """
    from keyheat.cli.replay import ReplayOptions, run

    options = ReplayOptions(
        trace,
        to,
        speed=speed,
        rate_per_s=rate,
        clients=clients,
        limit=limit,
        is_filling=fill,
        protocol=resp,
        fmt=fmt,
    )
    raise typer.Exit(run(options, as_json=as_json))


@app.command()
def doctor(
    url: Annotated[str, typer.Argument(metavar="[URL]", help=_URL_FORM)] = "redis://127.0.0.1:6379",
    as_json: _JSON = False,
) -> None:
    """Say what a server allows and which keyheat features that leaves.

    Everything is really tried. The one thing written is a key keyheat:doctor:<random> that expires after
    seconds, to see whether an invalidation arrives.
    """
    from keyheat.cli.doctor import run

    raise typer.Exit(run(url, as_json=as_json))


def main() -> None:
    """Run the command line; never shows a traceback for what a user can cause."""
    try:
        app()
    except ConfigError as error:
        _fail(error, 2)
    except KeyheatError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`keyheat hot | head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(error: KeyheatError, status: int) -> None:
    sys.stderr.write(f"keyheat: {error}\n")
    sys.exit(status)
