"""Measures how stale the reads of protected clients are: a writer elsewhere, readers in this process.

The writer, in a process of its own and without keyheat, numbers its writes and notes when each was
acknowledged. Staleness of a read is its *start* minus the moment at which the first newer write had been
acknowledged. Both moments are read from one clock, outside of what is measured on either side (a write is
acknowledged a little before that is noted, a read starts a little after), so the figure is never more than
the true one, and nothing is allowed for measuring.

Emptying the database is a write like any other: its number counts, its value is "nothing".
"""

import asyncio
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

import redis

from tests.client.sides import Side, raw

KEY = "hot"

# A Cluster client of redis-py closes sockets that other threads read from when its map changes: those get
# what the socket says, with or without keyheat.
CLIENT_ERRORS = (
    redis.RedisError,
    redis.exceptions.RedisClusterException,
    OSError,
    ValueError,
    AttributeError,
)

_WRITER = r"""
import json, select, sys, time
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
kind, port, key, per_s, clear, every = sys.argv[1], int(sys.argv[2]), sys.argv[3], *sys.argv[4:7]
per_s, every = float(per_s), int(every)
clock = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)
if kind == "cluster":
    client = redis.RedisCluster("127.0.0.1", port)
else:
    # A write that failed may have been made: it is not sent again, the next one has its own number.
    client = redis.Redis("127.0.0.1", port, retry=Retry(NoBackoff(), 0), socket_timeout=None)

def empty():
    if kind == "cluster":
        client.execute_command(clear, target_nodes=client.get_node_from_key(key))
    else:
        client.execute_command(clear)

def write(n):
    # Returns whether it is certain that it was made and will stay.
    if every and n % every == 0:
        empty()
        return True
    client.set(key, n)
    if kind != "cluster":
        return True
    # What no replica has is lost in a failover, by the servers' own rules, not by ours.
    nodes = client.nodes_manager.slots_cache[client.keyslot(key)]
    return len(nodes) == 1 or client.get_redis_connection(nodes[0]).wait(1, 200) > 0

n, log, is_over = 0, [], False
while not is_over:
    n += 1
    sent, acked = clock(), None
    try:
        if write(n):
            acked = clock()
    except redis.RedisError:
        pass
    log.append((sent, acked))
    if n == 1:
        print("go", flush=True)
    # Written to: the end. The pause is exact to a tenth of a millisecond or so, which is enough.
    is_over = bool(select.select([sys.stdin], [], [], 1 / per_s)[0])
print(json.dumps(log), flush=True)
"""


def now_ns() -> int:
    """The clock of writer and readers."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass
class Seen:
    """What one reader saw: for each value when it was last asked for and answered with it."""

    last_start: dict[int, int] = field(default_factory=dict)
    nothing: list[tuple[int, int]] = field(default_factory=list)
    reads: int = 0
    errors: int = 0

    def note(self, started: int, value: Any) -> None:
        """One read."""
        self.reads += 1
        if value is None:
            self.nothing.append((started, now_ns()))
        else:
            self.last_start[int(value)] = started

    def to_json(self) -> str:
        """For another process."""
        return json.dumps([list(self.last_start.items()), self.nothing, self.reads, self.errors])

    @classmethod
    def from_json(cls, text: str) -> "Seen":
        """From another process."""
        last, nothing, reads, errors = json.loads(text)
        return cls(dict(map(tuple, last)), [(s, e) for s, e in nothing], reads, errors)


@dataclass
class Verdict:
    """What was measured."""

    reads: int
    stale_max_ms: float
    errors: int
    newest: int
    written: int
    local_hits: int
    unproved_share: float

    def __str__(self) -> str:
        return (
            f"worst {self.stale_max_ms:.2f} ms, {self.reads} reads, {self.local_hits} local, "
            f"{self.written} writes, {self.errors} errors, without proof {self.unproved_share:.1%}"
        )


class Watch:
    """Reads one key through a protected client while a process rewrites it at the server."""

    def __init__(
        self,
        client: Any,
        side: Side,
        server_port: int,
        *,
        kind: str = "one",
        writes_per_s: float = 40.0,
        clear: str = "",
        clear_every: int = 0,
        readers: int = 3,
        key: str = KEY,
    ) -> None:
        self.client = client
        self._side = side
        self.key = key
        self._command = [kind, str(server_port), key, str(writes_per_s), clear or "-", str(clear_every)]
        self._clear_every = clear_every
        self._readers = readers
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._tasks: list[Any] = []
        self.seen = [Seen() for _ in range(readers)]
        # When the server lost all it held: nobody's write, but nothing is what is there then.
        self.losses: list[int] = []

    def __enter__(self) -> Self:
        """Start writing and reading."""
        self._before = self.client.keyheat.stats()
        self._writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._writer.stdout is not None
        assert self._writer.stdout.readline() == "go\n"
        if self._side.is_aio:
            loop = self._side.loop.loop
            self._tasks = [asyncio.run_coroutine_threadsafe(self._read_aio(s), loop) for s in self.seen]
        else:
            self._threads = [threading.Thread(target=self._read, args=(s,), daemon=True) for s in self.seen]
            for each in self._threads:
                each.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Make sure that nothing goes on."""
        self._over.set()
        self._writer.kill()
        self._writer.communicate()

    def stop_writing(self) -> None:
        """End the writer; the readers go on."""
        out, _ = self._writer.communicate("stop\n", timeout=20)
        self._log = [(sent, acked) for sent, acked in json.loads(out.splitlines()[-1])]

    def verdict(self) -> Verdict:
        """End, and say what was seen."""
        if self._writer.poll() is None:
            self.stop_writing()
        self._over.set()
        for each in self._threads:
            each.join(20)
            assert not each.is_alive()
        for task in self._tasks:
            task.result(20)
        stats = self.client.keyheat.stats()
        cached_ns = stats["cached_ns"] - self._before["cached_ns"]
        unproved_ns = stats["unproved_ns"] - self._before["unproved_ns"]
        verdict = Verdict(
            reads=sum(seen.reads for seen in self.seen),
            stale_max_ms=max(self.staleness_ns(seen) for seen in self.seen) / 1e6,
            errors=sum(seen.errors for seen in self.seen),
            newest=max((max(seen.last_start, default=0) for seen in self.seen), default=0),
            written=len(self._log),
            local_hits=stats["local_hits"] - self._before["local_hits"],
            unproved_share=unproved_ns / max(cached_ns, 1),
        )
        print(verdict)  # noqa: T201  the figures, for whoever asks for them
        return verdict

    def staleness_ns(self, seen: Seen) -> int:
        """The worst of what one reader saw. To be called when the writer has ended."""
        # first_newer[n]: when the first write after number n was acknowledged.
        endless = 1 << 62
        first_newer = [endless] * (len(self._log) + 1)
        for number in range(len(self._log), 0, -1):
            acked = self._log[number - 1][1]
            following = first_newer[number]
            first_newer[number - 1] = min(following, acked) if acked is not None else following
        worst = 0
        for number, started in seen.last_start.items():
            worst = max(worst, started - first_newer[number])
        for started, ended in seen.nothing:
            # The newest clearing that may have been made by then is the one that explains it best.
            clearings = range(self._clear_every, len(self._log) + 1, self._clear_every or 1)
            made = [n for n in clearings if self._log[n - 1][0] <= ended] if self._clear_every else []
            made += [self._last_before(lost_at) for lost_at in self.losses if lost_at <= ended]
            worst = max(worst, started - first_newer[max(made, default=0)])
        return worst

    def _last_before(self, moment: int) -> int:
        """The number of the last write that was begun before."""
        return max((n for n, (sent, _) in enumerate(self._log, start=1) if sent <= moment), default=0)

    @property
    def reads(self) -> int:
        """Reads answered so far."""
        return sum(seen.reads for seen in self.seen)

    def _read(self, seen: Seen) -> None:
        client = self.client
        while not self._over.is_set():
            started = now_ns()
            try:
                seen.note(started, client.get(self.key))
            except CLIENT_ERRORS:
                seen.errors += 1
                time.sleep(0.002)
            if seen.reads % 256 == 0:
                time.sleep(0.0005)  # readers that never rest leave the test itself no turn

    async def _read_aio(self, seen: Seen) -> None:
        client = raw(self.client)
        while not self._over.is_set():
            started = now_ns()
            try:
                seen.note(started, await client.get(self.key))
            except CLIENT_ERRORS:
                seen.errors += 1
            await asyncio.sleep(0 if seen.reads % 256 else 0.0005)
