"""The parent of a replay: reads the trace, deals it out to the workers, adds up what they did.

Accesses go round the clients in turn, so a hot key is asked for by all of them, as it would be. The
order of two accesses to one key is kept only with one client. The parent stays at most
`_LOOKAHEAD_S` ahead of the schedule, and the pipes push back when the clients cannot keep up, so
memory is bounded for any trace; how late commands were sent is part of the result.
"""

import contextlib
import itertools
import json
import marshal
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keyheat.errors import ConfigError, InternalError
from keyheat.observe.trace import Format, TraceReader, TraceReport
from keyheat.proxy.url import UpstreamUrl
from keyheat.replay.histogram import Histogram
from keyheat.replay.schedule import Due, scheduled
from keyheat.replay.worker import FRAME, Work
from keyheat.server.connect import is_cluster

_LOOKAHEAD_S: Final = 1.0
_BATCH: Final = 64
_POLL_S: Final = 0.02
_PROGRESS_EVERY_S: Final = 0.25
_STOP_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """What to play, to whom and how."""

    trace: Path
    upstream: UpstreamUrl
    fmt: Format | None = None
    speed: float = 1.0
    rate_per_s: float | None = None
    clients: int = 8
    limit: int | None = None
    is_filling: bool = False
    protocol: int = 3


@dataclass(slots=True)
class ReplayResult:
    """What was played and how it went."""

    settings: ReplaySettings
    trace_format: str
    report: TraceReport
    is_paced: bool = False
    is_interrupted: bool = False
    seconds: float = 0.0
    numbers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)

    def add(self, tally: dict[str, Any]) -> None:
        """Add what one client did."""
        for name, value in tally.items():
            if isinstance(value, int):
                self.numbers[name] += value
        self.errors.update(tally["errors"])
        self.skipped.update(tally["skipped"])
        self.latency.merge_json(tally["latency"])
        self.lag.merge_json(tally["lag"])

    def to_json(self) -> dict[str, Any]:
        """The summary as one object."""
        names = ("ops", "reads", "writes", "hits", "misses", "fills")
        return {
            "trace": str(self.settings.trace),
            "format": self.trace_format,
            "to": str(self.settings.upstream),
            "clients": self.settings.clients,
            "speed": self.settings.speed if self.is_paced else 0,
            "accesses": self.report.accesses,
            **{name: self.numbers[name] for name in names},
            "seconds": round(self.seconds, 3),
            "ops_per_s": round(self.numbers["ops"] / self.seconds, 1) if self.seconds else 0.0,
            "latency_ms": self.latency.summary_ms(),
            "lag_ms": self.lag.summary_ms(),
            "errors": self.errors.total(),
            "errors_by_kind": dict(self.errors.most_common()),
            "skipped_by_op": dict(self.skipped.most_common()),
            "cut_values": self.numbers["cut_values"],
            "malformed": self.report.malformed,
            "malformed_examples": self.report.examples,
            "truncated": self.report.truncated,
            "interrupted": self.is_interrupted,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is."""

    share: float
    ops: int
    seconds: float


class _Worker:
    """A worker process and the thread that listens to it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.clients: int = settings["clients"]
        self.ops = 0
        self.results: list[dict[str, Any]] | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "keyheat.replay.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._write(json.dumps(settings).encode() + b"\n")

    def wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise InternalError(f"a replay process ended at its start with status {self._process.wait()}")

    def begin(self, start_s: float) -> None:
        self._write(json.dumps({"start_s": start_s}).encode() + b"\n")
        self._listener.start()

    def send(self, client: int, work: Work) -> None:
        frame = marshal.dumps(work)
        self._write(FRAME.pack(len(frame), client) + frame)

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            self.ops = said.get("so_far", {}).get("ops", self.ops)
            self.results = said.get("results", self.results)

    def finish(self, timeout_s: float | None) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._listener.join(timeout_s)

    @property
    def is_done(self) -> bool:
        return not self._listener.is_alive()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def close(self) -> None:
        if self._process.poll() is None and self.results is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()


def replay(settings: ReplaySettings, on_progress: Callable[[Progress], None] | None = None) -> ReplayResult:
    """Play a trace and report; a KeyboardInterrupt ends it early and is part of the result.

    Raises:
        TraceError: The trace cannot be read.
        UpstreamError: The server cannot be used at the start.
    """
    clustered = is_cluster(settings.upstream)
    with TraceReader(settings.trace, settings.fmt) as reader:
        result = ReplayResult(settings, reader.format, reader.report)
        stream = scheduled(
            itertools.islice(iter(reader), settings.limit),
            speed=settings.speed,
            rate_per_s=settings.rate_per_s,
        )
        # Read before anything starts, so that a bad trace is said at once.
        first = next(stream, None)
        if first is None:
            raise ConfigError("--limit 0 leaves nothing to play")
        dues = itertools.chain((first,), stream)
        result.is_paced = settings.rate_per_s is not None or (
            settings.speed > 0 and first.access.at_s is not None
        )
        workers: list[_Worker] = []
        try:
            workers += _started(settings, clustered=clustered, is_paced=result.is_paced)
            _play(dues, workers, reader, result, on_progress)
        finally:
            for worker in workers:
                worker.close()
        return result


def _started(settings: ReplaySettings, *, clustered: bool, is_paced: bool) -> Iterator[_Worker]:
    url = settings.upstream
    processes = min(settings.clients, os.cpu_count() or 1)
    common = {
        "parent_pid": os.getpid(),
        "addresses": url.addresses,
        "db": url.db,
        "username": url.username,
        "password": url.password,
        "cluster": clustered,
        "protocol": settings.protocol,
        "fill": settings.is_filling,
        "paced": is_paced,
    }
    for index in range(processes):
        share = settings.clients // processes + (index < settings.clients % processes)
        yield _Worker({**common, "clients": share})


def _play(
    dues: Iterator[Due],
    workers: list[_Worker],
    reader: TraceReader,
    result: ReplayResult,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    for worker in workers:
        worker.wait_until_ready()
    start_s = time.monotonic()
    for worker in workers:
        worker.begin(start_s)
    told_s = 0.0

    def tell() -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if on_progress is not None and now_s - told_s >= _PROGRESS_EVERY_S:
            told_s = now_s
            share = max(reader.progress, reader.report.accesses / (result.settings.limit or sys.maxsize))
            on_progress(Progress(share, sum(worker.ops for worker in workers), now_s - start_s))

    try:
        _deal(dues, workers, start_s, tell)
        _wait(workers, tell)
    except KeyboardInterrupt:
        result.is_interrupted = True
        _stop(workers)
    except BrokenPipeError:
        raise InternalError("a replay process ended before its work was done") from None
    result.seconds = time.monotonic() - start_s
    for worker in workers:
        for tally in worker.results or ():
            result.add(tally)
    if not result.is_interrupted and any(worker.results is None for worker in workers):
        raise InternalError("a replay process ended without its result")


def _wait(workers: list[_Worker], tell: Callable[[], None]) -> None:
    for worker in workers:
        worker.finish(0)
    while not all(worker.is_done for worker in workers):
        tell()
        time.sleep(_POLL_S)


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.finish(_STOP_TIMEOUT_S)


def _deal(dues: Iterator[Due], workers: list[_Worker], start_s: float, tell: Callable[[], None]) -> None:
    seats = [(worker, client) for worker in workers for client in range(worker.clients)]
    hands: list[Work] = [[] for _ in seats]

    def flush(at_least: int) -> None:
        for (worker, client), hand in zip(seats, hands, strict=True):
            if len(hand) >= at_least:
                worker.send(client, hand)
                hand.clear()

    for index, (after_s, access) in enumerate(dues):
        early_s = after_s - (time.monotonic() - start_s) - _LOOKAHEAD_S
        if early_s > 0:
            flush(1)
            while (early_s := after_s - (time.monotonic() - start_s) - _LOOKAHEAD_S / 2) > 0:
                tell()
                time.sleep(min(early_s, _PROGRESS_EVERY_S))
        seat = index % len(seats)
        hands[seat].append((after_s, access.op, access.key, access.size_bytes, access.ttl_s))
        if len(hands[seat]) == _BATCH:
            worker, client = seats[seat]
            worker.send(client, hands[seat])
            hands[seat].clear()
            tell()
    flush(1)
