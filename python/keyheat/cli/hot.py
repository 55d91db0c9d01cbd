"""`keyheat hot`."""

import json
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING, NoReturn

from keyheat.errors import ConfigError, InternalError, KeyheatUnreachableError
from keyheat.model import HotKey, HotSet, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

_TIMEOUT_S = 5.0
_ANSWER_MAX_BYTES = 64 << 20
_PIPE_WIDTH = 10_000
_WIDE = 110
_KEY_WIDTH = 20


def run(server: str, *, as_json: bool, is_watching: bool, interval_s: float) -> int:
    """Print the hot set, once or until Ctrl-C."""
    if not is_watching:
        _print(fetch(server), as_json=as_json)
        return 0
    try:
        if as_json or not sys.stdout.isatty():
            _stream(server, interval_s, as_json=as_json)
        _watch(server, interval_s)
    except KeyboardInterrupt:
        return 0


def fetch(server: str) -> HotSet:
    """Ask a running keyheat for its hot set.

    Raises:
        ConfigError: `server` is no http address.
        KeyheatUnreachableError: Nobody answers there, or somebody else does.
    """
    base = server if "://" in server else f"http://{server}"
    if not base.startswith(("http://", "https://")):
        raise ConfigError("--server takes the http address of keyheat; accepted: http://host:port")
    url = f"{base.rstrip('/')}/api/hot"
    try:
        # No proxy settings of the environment: this is a local or internal address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            return HotSet.from_json(answer.read(_ANSWER_MAX_BYTES))
    except urllib.error.HTTPError as error:
        error.close()
        raise KeyheatUnreachableError(
            f"{url} answers {error.code}: is that the http address of keyheat?"
        ) from error
    except urllib.error.URLError as error:
        raise KeyheatUnreachableError(
            f"no keyheat at {base}: {_reason(error.reason)} (start one with `keyheat up`)"
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        raise KeyheatUnreachableError(f"no keyheat at {base}: {_reason(error)}") from error
    except InternalError as error:
        raise KeyheatUnreachableError(f"{url} answers, but not with a hot set: is that keyheat?") from error


def _reason(error: object) -> str:
    return str(error.strerror).lower() if isinstance(error, OSError) and error.strerror else str(error)


def _print(found: HotSet, *, as_json: bool) -> None:
    if as_json:
        # json escapes control characters and everything outside ASCII by itself.
        lines = [json.dumps({"version": found.version, **key.fields}) for key in found.keys]
        sys.stdout.write("".join(line + "\n" for line in lines))
        sys.stdout.flush()
        return
    from rich.console import Console

    # A pipe has no width: nothing is cut there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table(found, width=console.width))


def _stream(server: str, interval_s: float, *, as_json: bool) -> NoReturn:
    while True:
        _print(fetch(server), as_json=as_json)
        time.sleep(interval_s)


def _watch(server: str, interval_s: float) -> NoReturn:
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        while True:
            live.update(table(fetch(server), width=live.console.width), refresh=True)
            time.sleep(interval_s)


def table(found: HotSet, rows: int | None = None, width: int = _PIPE_WIDTH) -> "RenderableType":
    """The hot set as a table, hottest first; with `rows`, only so many of them.

    A narrow terminal is shown the columns that matter most, a wide one all of them.
    """
    from rich.table import Table
    from rich.text import Text

    is_wide = width >= _WIDE
    cache = (
        "local cache on"
        if found.local_cache_on
        else f"local cache off: {found.local_cache_reason or 'switched off'}"
    )
    whole = Table(
        title=f"hot set {found.version}: {len(found.keys)} keys · {cache}", title_justify="left", box=None
    )
    whole.add_column("key", min_width=_KEY_WIDTH)
    whole.add_column("state", no_wrap=True)
    numbers = ("reads/s", "writes/s", *(("bytes/s",) if is_wide else ()), "share", "hot for", "hits")
    for column in numbers:
        whole.add_column(column, justify="right", no_wrap=True)
    if is_wide:
        whole.add_column("rule", no_wrap=True)
        whole.add_column("plan", no_wrap=True)
    for key in sorted(found.keys, key=_load, reverse=True)[:rows]:
        whole.add_row(
            Text(printable(key.key), overflow="ellipsis", no_wrap=True),
            key.state,
            f"{key.reads_per_s:,.0f}",
            f"{key.writes_per_s:,.0f}",
            *((f"{key.bytes_per_s:,.0f}",) if is_wide else ()),
            f"{key.share:.1%}",
            f"{key.since_s:,.0f} s",
            f"{key.local_hits:,}",
            *((Text(key.rule), Text(", ".join(key.plan))) if is_wide else ()),
        )
    return whole


def _load(key: HotKey) -> float:
    return key.reads_per_s + key.writes_per_s
