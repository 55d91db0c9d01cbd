"""`keyheat demo`."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from keyheat.cli.hot import table
from keyheat.demo.board import Phase
from keyheat.demo.result import work_out
from keyheat.demo.stage import OnStep, OnView, View, play

_BAR = 40
_KEYS_SHOWN = 8
_TITLES = {
    Phase.TRACE_BEFORE: "without cache · the trace alone",
    Phase.SALE_BEFORE: "without cache · flash sale",
    Phase.TRACE_AFTER: "with cache · the trace alone",
    Phase.SALE_AFTER: "with cache · flash sale",
}


def run(*, seconds: int, as_json: bool) -> int:
    """Play the demo and print what it showed."""
    with _interruptible(), _display(as_json=as_json) as (on_step, on_view):
        result = work_out(play(seconds, on_step, on_view))
    sys.stdout.write(json.dumps(result) + "\n" if as_json else _summary(result))
    return 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP unwind once; further ones do not disturb the clearing away."""

    def unwind(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    earlier = {number: signal.signal(number, unwind) for number in numbers}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@contextmanager
def _display(*, as_json: bool) -> Iterator[tuple[OnStep, OnView]]:
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            screen = _Screen(live)
            yield screen.step, screen.view
    elif as_json:
        yield (lambda _text: None), (lambda _view: None)
    else:
        yield _say, (lambda _view: None)


def _say(text: str) -> None:
    sys.stdout.write(f"· {text}\n")
    sys.stdout.flush()


class _Screen:
    """The live display: the load of each node now and in the sale without cache, and the hot set."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._steps: list[str] = []
        self._before: list[float] = []

    def step(self, text: str) -> None:
        self._steps.append(text)
        self._live.update(Group(*(Text(f"· {each}", style="dim") for each in self._steps)), refresh=True)

    def view(self, view: View) -> None:
        if view.phase is Phase.SALE_BEFORE:
            self._before = view.ops_per_s
        self._live.update(self._rendered(view), refresh=True)

    def _rendered(self, view: View) -> RenderableType:
        scale = max([*view.ops_per_s, *self._before, 1.0])
        lines = [
            Text(f"keyheat demo · {_TITLES.get(view.phase, '')} · {view.left_s:.0f} s left", style="bold")
        ]
        for index, (address, ops) in enumerate(zip(view.addresses, view.ops_per_s, strict=True)):
            lines.append(
                _bar(f"node {address:<16}", ops, scale, "green" if view.phase > Phase.SALE_BEFORE else "red")
            )
            if self._before and view.phase > Phase.SALE_BEFORE:
                lines.append(_bar("  in the sale, no cache", self._before[index], scale, "dim"))
        lines.append(
            Text(
                f"reads {view.reads:,}  writes {view.writes:,}  errors {view.errors:,}  "
                f"answered by keyheat itself {view.local_hits:,}"
            )
        )
        return Group(*lines, table(view.hot, rows=_KEYS_SHOWN, width=self._live.console.width))


def _bar(label: str, ops: float, scale: float, style: str) -> Text:
    return Text.assemble(f"{label:<24}", ("█" * round(_BAR * ops / scale), style), f" {ops:,.0f} ops/s")


def _summary(result: dict[str, Any]) -> str:
    def per_node(name: str) -> str:
        took_s = result[f"sale_seconds_{name}"]
        return " / ".join(f"{ops / took_s:,.0f}" for ops in result[f"ops_per_node_{name}"])

    def ms(name: str) -> str:
        return "never" if result[name] is None else f"{result[name]:g} ms"

    def busiest(name: str) -> str:
        return f"{result[f'imbalance_{name}']:.2f}"

    lines = [
        "",
        "A flash sale took 60 % of all reads to one key, rewritten ten times a second.",
        "",
        f"{'':<28}{'without the cache':<22}with the cache",
        f"{'ops/s per node':<28}{per_node('before'):<22}{per_node('after')}",
        f"{'busiest node over the mean':<28}{busiest('before'):<22}{busiest('after')}"
        f"   (the trace without a sale: {busiest('trace')})",
        "",
        f"{'found hot after':<28}{ms('detect_ms')}",
        f"{'first answered locally':<28}{ms('protect_ms')}",
        f"{'answered by keyheat itself':<28}{result['hit_ratio']:.1%} of the reads in the sale: "
        f"{result['local_hits']:,}; {result['upstream_reads_saved']:,} fewer reads upstream",
        f"{'oldest value returned':<28}{result['stale_max_ms']:g} ms after a newer write was acknowledged "
        f"(bound {result['max_staleness_ms']} ms; p99 {result['stale_p99_ms']:g} ms)",
        f"{'upstream for want of proof':<28}{result['proof_lapsed']:.2%} of the hot reads",
        f"{'in all':<28}{result['reads']:,} reads, {result['writes']:,} writes, "
        f"{result['errors']:,} errors, {result['seconds']:g} s",
        "",
        *(
            [f"The local cache was off: {result['local_cache_reason']}", ""]
            if result["local_cache_reason"]
            else []
        ),
        "keyheat counted every access, found the key by its share of its node's traffic, and answered its",
        "reads from memory; the server told it of every write, and a copy whose freshness could not be",
        "proved was not used.",
        "",
        "Next:",
        "  keyheat doctor redis://your-server:6379           what your server allows",
        "  keyheat up --upstream redis://your-server:6379    the proxy: point your clients at 127.0.0.1:6380",
        "  keyheat hot --watch                               your hot keys, live",
        "",
    ]
    return "\n".join(lines)
