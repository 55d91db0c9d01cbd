"""The load of every stage: matched clients, a writer at the servers, readers of its key; what they saw."""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.soak.ages import Direct, Reader, oldest_ms
from tests.soak.matched import Matched
from tests.soak.wire import Refused, Wire

BOUND_MS = 100.0
TAG = "hot"
HOT_KEY = f"{{{TAG}}}:value"
LOG_KEY = f"{{{TAG}}}:log"


@dataclass
class Told:
    """What a stage tells: figures, and what was wrong."""

    stage: str
    seed: int
    figures: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    # Why nothing was judged, if nothing was.
    disturbed: str = ""

    def line(self) -> str:
        """One line for people."""
        figures = " ".join(f"{name}={value}" for name, value in self.figures.items())
        verdict = self.disturbed or "PASS" if not self.wrong else "MISS " + "; ".join(self.wrong[:5])
        return f"{self.stage} seed={self.seed} {figures} {verdict}"


class Crowd:
    """All clients of a proxy, from the constructor to `stop()`."""

    def __init__(
        self,
        proxy: str,
        primary: Callable[[], str | None],
        seed: int,
        *,
        is_logged: bool = False,
        patience_s: float = 10.0,
        readers: int = 2,
    ) -> None:
        tags = (TAG, TAG, "elsewhere", "other")
        log = LOG_KEY if is_logged else None
        self.direct = Direct(primary, HOT_KEY, log=log, patience_s=patience_s)
        self.matched = [Matched(proxy, tag, seed + number) for number, tag in enumerate(tags)]
        self.readers = [Reader(proxy, self.direct, BOUND_MS) for _ in range(readers)]

    @property
    def reads(self) -> int:
        """Reads of the hot key that were answered so far."""
        return sum(reader.reads for reader in self.readers)

    @property
    def wrong(self) -> list[str]:
        """What was wrong so far."""
        return [fault for each in self._everybody() for fault in each.wrong]

    @property
    def beside(self) -> list[Matched]:
        """The clients whose lists are where the hot key is."""
        return [each for each in self.matched if each.tag == TAG]

    def stop(self) -> None:
        """End everybody."""
        for each in self._everybody():
            each.stop()

    def _everybody(self) -> list[Matched | Reader | Direct]:
        return [*self.matched, *self.readers, self.direct]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tell(self, told: Told, survivors: set[int] | None = None) -> None:
        """Put what was seen into `told`; call it after `stop()`."""
        oldest = oldest_ms(self.direct, self.readers, survivors)
        errors = sum((each.errors for each in self.matched), Counter[str]())
        told.figures |= {
            "reads": self.reads,
            "replies": sum(each.replies for each in self.matched),
            "acknowledged": sum(len(each.acknowledged) for each in self.matched),
            "writes": len(self.direct.acked_ns),
            "left": sum(each.left for each in self.matched),
            "errors": dict(errors),
            "oldest_ms": round(oldest, 1),
        }
        told.wrong += self.wrong
        if oldest > BOUND_MS:
            told.wrong.append(f"a read was {oldest:.0f} ms old, the bound is {BOUND_MS:.0f}")
        if self.reads < 1000 or len(self.direct.acked_ns) < 20:
            told.wrong.append("next to nothing was read or written, so nothing was checked")

    def check_lists(self, told: Told, address_of: Callable[[str], str]) -> None:
        """No number that was acknowledged is missing, and none was appended twice."""
        for each in self.matched:
            kept = kept_numbers(address_of(each.list_key), each.list_key)
            lost = [number for _, number, _ in each.acknowledged if kept[number] == 0]
            if lost:
                told.wrong.append(
                    f"{len(lost)} acknowledged writes are lost from {each.list_key}: {lost[:5]}"
                )
            told.wrong += twice(each.list_key, kept)


def kept_numbers(address: str, key: str) -> Counter[int]:
    """The numbers in a list on a server, and how often each is there."""
    with Wire(address) as wire:
        reply = wire.ask("LRANGE", key, 0, -1)
    if isinstance(reply, Refused):
        raise TypeError(f"{address} answers {reply}")
    return Counter(int(each) for each in reply)


def twice(key: str, kept: Counter[int]) -> list[str]:
    """What is wrong if a number is there more than once."""
    again = [number for number, count in kept.items() if count > 1]
    return [f"sent again: {again[:5]} of {key}"] if again else []


def kill_somebody(address: str, chooser: random.Random) -> None:
    """CLIENT KILL one connection to a server, whosever it is; but a Sentinel would take it for a failure."""
    with contextlib.suppress(OSError, EOFError), Wire(address, timeout_s=1.0) as wire:
        lines = wire.ask("CLIENT", "LIST", "TYPE", "normal")
        lines = lines.splitlines() if isinstance(lines, bytes) else []
        if ids := [line.split(b" ")[0][3:] for line in lines if b" name=sentinel" not in line]:
            wire.ask("CLIENT", "KILL", "ID", chooser.choice(ids))


def settle(crowd: Crowd, hits: Callable[[], int], more: int, timeout_s: float = 20.0) -> bool:
    """Wait until so many more reads were answered from the proxy's memory."""
    goal, deadline = hits() + more, time.monotonic() + timeout_s
    while hits() < goal and not crowd.wrong:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return crowd.reads > 0
