"""The play: sets the stage, runs the phases, works out the result, clears everything away.

Each half begins with the trace alone, which shows how even it is by itself and lets the sale's key
cool down, then the sale. The first half is played with keyheat's local cache off, the second with it
on; detection is on in both.
"""

import json
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyheat.clock import now_ns
from keyheat.demo import profile
from keyheat.demo.board import Board, Cell, Phase
from keyheat.demo.client import SALE_KEY
from keyheat.demo.nodes import Nodes, difference
from keyheat.errors import InternalError
from keyheat.model import HotKey, HotSet
from keyheat.proxy.native import start_proxy
from keyheat.proxy.settings import ProxySettings
from keyheat.proxy.url import parse_url
from keyheat.server import child
from keyheat.server.binary import find_binary
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.rundir import RunDir

if TYPE_CHECKING:
    from pathlib import Path

    from keyheat._keyheat import Proxy

READERS: Final = 4
READS_PER_S: Final = 4800.0
SALE_SHARE: Final = 0.6
WRITES_PER_S: Final = 10.0
SALE_VALUE_BYTES: Final = 512
MAX_STALENESS_MS: Final = 100

PLAY_MIN_S: Final = 16.0
_CLEAR_AWAY_S: Final = 1.0
_TICK_S: Final = 0.1
_TRACE_S: Final = 6.0
_READY_TIMEOUT_S: Final = 20.0
_COOL_TIMEOUT_S: Final = 4.0


@dataclass(slots=True)
class PhaseRecord:
    """What was seen of one phase."""

    began_ns: int
    seconds: float = 0.0
    calls: list[dict[str, int]] = field(default_factory=list)
    stats: dict[str, int] = field(default_factory=dict)
    hot_since_ns: int | None = None
    first_local_hit_ns: int | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What a display may show now."""

    phase: Phase
    left_s: float
    addresses: list[str]
    ops_per_s: list[float]
    reads: int
    writes: int
    errors: int
    local_hits: int
    hot: HotSet


@dataclass(slots=True)
class Played:
    """All that was recorded, for `result.py` to work out."""

    seconds: float
    phases: dict[Phase, PhaseRecord]
    reads: "dict[Phase, list[array[int]]]"
    acknowledged_ns: "array[int]"
    totals: dict[tuple[Cell, Phase], int]
    local_cache_reason: str | None


OnView = Callable[[View], None]
OnStep = Callable[[str], None]


def play(seconds: float, on_step: OnStep, on_view: OnView) -> Played:
    """Play it all in about so many seconds, set-up included; whatever happens, nothing is left behind."""
    began_s = time.monotonic()
    with ExitStack() as stack:
        on_step("starting three Valkey primaries as a Cluster")
        cluster = stack.enter_context(EmbeddedCluster(3, binary=find_binary(prefer_wheel=True)))
        nodes = Nodes(cluster)
        stack.callback(nodes.close)
        on_step("loading the keys of a real trace (Twitter cluster 52, one minute)")
        nodes.load(profile.load(), SALE_VALUE_BYTES)
        proxy = start_proxy(
            ProxySettings(
                upstream=parse_url(cluster.url),
                listen="127.0.0.1:0",
                http=None,
                max_staleness_ms=MAX_STALENESS_MS,
                local_cache=True,
                log="error",
            )
        )
        stack.callback(proxy.stop)
        directory = stack.enter_context(RunDir()).path
        clients = READERS + 1
        board = Board(directory / "board", clients, is_new=True)
        stack.callback(board.close)
        on_step(
            f"starting {READERS} readers and a writer, unmodified redis-py, through keyheat at {proxy.listen}"
        )
        processes = stack.enter_context(_clients(directory, proxy.listen, cluster.owner(SALE_KEY).address))
        stage = _Stage(nodes, proxy, board, processes, on_view)
        stage.wait_until_ready(directory, clients)
        left_s = seconds - (time.monotonic() - began_s) - _CLEAR_AWAY_S
        return stage.run(max(left_s, PLAY_MIN_S), on_step, directory)


@contextmanager
def _clients(directory: "Path", address: str, owner: str) -> Iterator[list["subprocess.Popen[bytes]"]]:
    common = {
        "parent_pid": os.getpid(),
        "directory": str(directory),
        "address": address,
        "clients": READERS + 1,
    }
    reader = {
        **common,
        "role": "read",
        "readers": READERS,
        "per_s": READS_PER_S / READERS,
        "sale_share": SALE_SHARE,
    }
    writer = {
        **common,
        "role": "write",
        "per_s": WRITES_PER_S,
        "value_bytes": SALE_VALUE_BYTES,
        "owner": owner,
        "index": READERS,
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for settings in [*({**reader, "index": index} for index in range(READERS)), writer]:
            processes.append(  # noqa: PERF401 - what was started must be known if the next one fails
                subprocess.Popen(
                    [sys.executable, "-m", "keyheat.demo.client", json.dumps(settings)],
                    stdin=subprocess.DEVNULL,
                    process_group=0,
                )
            )
        yield processes
    finally:
        for process in processes:
            child.end(process, timeout_s=1.0)


class _Stage:
    def __init__(
        self,
        nodes: Nodes,
        proxy: "Proxy",
        board: Board,
        processes: list["subprocess.Popen[bytes]"],
        on_view: OnView,
    ) -> None:
        self._nodes = nodes
        self._proxy = proxy
        self._board = board
        self._processes = processes
        self._on_view = on_view
        self._phases: dict[Phase, PhaseRecord] = {}

    def wait_until_ready(self, directory: "Path", clients: int) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not all((directory / f"ready-{index}").exists() for index in range(clients)):
            self._check_clients()
            if time.monotonic() > deadline:
                raise InternalError(f"the demo's clients were not ready within {_READY_TIMEOUT_S:g} s")
            time.sleep(0.02)

    def run(self, seconds: float, on_step: OnStep, directory: "Path") -> Played:
        began_s = time.monotonic()
        half_s = seconds / 2
        self._proxy.set_local_cache(False)
        on_step("without keyheat's cache: the trace alone")
        self._phase(Phase.TRACE_BEFORE, _TRACE_S)
        on_step(f"without keyheat's cache: a flash sale takes {SALE_SHARE:.0%} of the reads")
        self._phase(Phase.SALE_BEFORE, half_s - _TRACE_S)
        self._proxy.set_local_cache(True)
        on_step("with keyheat's cache: the trace alone")
        cooling_s = self._phase(Phase.TRACE_AFTER, _TRACE_S, until=self._is_cold)
        on_step(f"with keyheat's cache: the same flash sale, {SALE_SHARE:.0%} of the reads")
        self._phase(Phase.SALE_AFTER, max(2.0, seconds - half_s - cooling_s))
        reason = self._hot().local_cache_reason
        self._board.phase = Phase.STOP
        for process in self._processes:
            if process.wait(_READY_TIMEOUT_S) != 0:
                raise InternalError(f"a client of the demo ended with status {process.returncode}")
        return Played(
            seconds=time.monotonic() - began_s,
            phases=self._phases,
            reads={phase: _noted(directory, phase) for phase in Phase if phase.is_sale},
            acknowledged_ns=_array(directory / "writes"),
            totals={(cell, phase): self._board.total(cell, (phase,)) for cell in Cell for phase in Phase},
            local_cache_reason=reason,
        )

    def _phase(self, phase: Phase, seconds: float, until: Callable[[], bool] | None = None) -> float:
        """Play one phase; with `until`, somewhat longer if that is not so yet. Returns how long."""
        calls, stats = self._nodes.calls(), self._stats()
        record = self._phases[phase] = PhaseRecord(now_ns())
        began_s = told_s = time.monotonic()
        self._board.phase = phase
        told_calls = calls
        end_s = began_s + seconds
        while (now_s := time.monotonic()) < end_s:
            time.sleep(min(_TICK_S, end_s - now_s))
            self._check_clients()
            hot = self._hot()
            self._note(record, hot)
            now_s = time.monotonic()
            if now_s - told_s >= 4 * _TICK_S:
                now_calls = self._nodes.calls()
                ops = [sum(node.values()) / (now_s - told_s) for node in difference(now_calls, told_calls)]
                told_calls, told_s = now_calls, now_s
                self._show(phase, end_s - now_s, ops, hot)
            if (
                now_s >= end_s
                and until is not None
                and not until()
                and now_s < began_s + seconds + _COOL_TIMEOUT_S
            ):
                end_s = now_s + _TICK_S
        record.seconds = time.monotonic() - began_s
        record.calls = difference(self._nodes.calls(), calls)
        record.stats = {name: count - stats.get(name, 0) for name, count in self._stats().items()}
        self._note(record, self._hot())
        return record.seconds

    def _note(self, record: PhaseRecord, hot: HotSet) -> None:
        sale = _sale(hot)
        if sale is None:
            return
        if record.hot_since_ns is None and sale.since_ns >= record.began_ns:
            record.hot_since_ns = sale.since_ns
        hit_ns = sale.first_local_hit_ns
        if record.first_local_hit_ns is None and hit_ns is not None and hit_ns >= record.began_ns:
            record.first_local_hit_ns = hit_ns

    def _show(self, phase: Phase, left_s: float, ops_per_s: list[float], hot: HotSet) -> None:
        total = self._board.total
        self._on_view(
            View(
                phase=phase,
                left_s=max(left_s, 0.0),
                addresses=self._nodes.addresses,
                ops_per_s=ops_per_s,
                reads=total(Cell.READS),
                writes=total(Cell.WRITES),
                errors=total(Cell.ERRORS),
                local_hits=self._stats().get("local_hits", 0),
                hot=hot,
            )
        )

    def _is_cold(self) -> bool:
        return _sale(self._hot()) is None

    def _hot(self) -> HotSet:
        return HotSet.from_json(self._proxy.hot())

    def _stats(self) -> dict[str, int]:
        whole: dict[str, Any] = json.loads(self._proxy.stats())
        return {name: value for name, value in whole.items() if isinstance(value, int)}

    def _check_clients(self) -> None:
        for process in self._processes:
            if (status := process.poll()) is not None:
                raise InternalError(f"a client of the demo ended early with status {status}")


def _sale(hot: HotSet) -> HotKey | None:
    return next((key for key in hot.keys if key.key == SALE_KEY), None)


def _noted(directory: "Path", phase: Phase) -> "list[array[int]]":
    return [_array(directory / f"reads-{phase.name}-{index}") for index in range(READERS)]


def _array(path: "Path") -> "array[int]":
    cells = array("q")
    cells.frombytes(path.read_bytes())
    return cells
