"""`keyheat replay`."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keyheat.errors import ConfigError
from keyheat.observe.trace import FORMATS
from keyheat.proxy.url import parse_url
from keyheat.replay.runner import Progress, ReplayResult, ReplaySettings, replay

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The options of the command line."""

    trace: Path
    to: str
    speed: float
    rate_per_s: float | None
    clients: int
    limit: int | None
    is_filling: bool
    protocol: int
    fmt: str | None


def run(options: ReplayOptions, *, as_json: bool) -> int:
    """Play the trace and print the report."""
    if options.fmt is not None and options.fmt not in FORMATS:
        raise ConfigError(f"--format {options.fmt!r}; accepted: {', '.join(FORMATS)}")
    settings = ReplaySettings(
        trace=options.trace,
        upstream=parse_url(options.to),
        fmt=options.fmt,
        speed=options.speed,
        rate_per_s=options.rate_per_s,
        clients=options.clients,
        limit=options.limit,
        is_filling=options.is_filling,
        protocol=options.protocol,
    )
    with _progress_bar() as on_progress:
        result = replay(settings, on_progress)
    sys.stdout.write(json.dumps(result.to_json()) + "\n" if as_json else _report(result))
    if result.is_interrupted:
        return 130
    return 1 if result.numbers["ops"] and result.errors.total() >= result.numbers["ops"] else 0


@contextmanager
def _progress_bar() -> Iterator[OnProgress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %  {task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(progress: Progress) -> None:
            per_s = progress.ops / progress.seconds if progress.seconds else 0.0
            bar.update(
                task, completed=progress.share, description=f"{progress.ops:,} commands, {per_s:,.0f}/s"
            )

        yield show


def _report(result: ReplayResult) -> str:
    whole = result.to_json()
    n = result.numbers
    pace = f"{result.settings.speed:g} × its own speed" if result.is_paced else "as fast as possible"
    if result.settings.rate_per_s is not None:
        pace = f"{result.settings.rate_per_s:g} accesses a second"
    lines = [
        f"{whole['trace']} ({whole['format']}) to {whole['to']}, {pace}, {whole['clients']} clients",
        f"commands  {n['ops']:,} in {result.seconds:.2f} s: {whole['ops_per_s']:,.0f}/s"
        + ("  (interrupted)" if result.is_interrupted else ""),
        f"reads     {n['reads']:,}: {n['hits']:,} found, {n['misses']:,} not; {n['fills']:,} filled",
        f"writes    {n['writes']:,}",
        "latency   " + _percentiles(whole["latency_ms"]),
    ]
    if result.is_paced:
        lines.append("lag       " + _percentiles(whole["lag_ms"]) + " behind schedule")
    kinds = ", ".join(f"{kind}: {count:,}" for kind, count in result.errors.most_common())
    lines.append(f"errors    {result.errors.total():,}" + (f" ({kinds})" if kinds else ""))
    if result.skipped:
        lines.append(
            "skipped   " + ", ".join(f"{op}: {count:,}" for op, count in result.skipped.most_common(10))
        )
    if n["cut_values"]:
        lines.append(f"cut       {n['cut_values']:,} values to 1 MiB")
    if result.report.malformed:
        lines.append(
            f"malformed {result.report.malformed:,} lines skipped ({'; '.join(result.report.examples)})"
        )
    if result.report.truncated:
        lines.append(f"trace     {result.report.truncated}")
    return "\n".join(lines) + "\n"


def _percentiles(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:g} ms" for name, value in values.items())
