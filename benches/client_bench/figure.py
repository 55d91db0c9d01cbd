"""One measured figure beside its target, and the page of all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


class LeftOutError(Exception):
    """A case cannot be run here; says what is missing."""


@dataclass(frozen=True)
class Figure:
    """What was measured.

    Attributes:
        case: The case it belongs to.
        what: What it is of.
        value: The figure.
        unit: Its unit.
        target: The most it should be; None for a figure that others are compared with.
    """

    case: str
    what: str
    value: float
    unit: str
    target: float | None = None
    is_floor: bool = False

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.is_floor else self.value <= self.target

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"is_met": self.is_met}

    def __str__(self) -> str:
        verdict = {None: "", True: "met", False: "MISSED"}[self.is_met]
        bound = ""
        if self.target is not None:
            bound = f"target {'>=' if self.is_floor else '<='} {self.target:g}: {verdict}"
        return f"{self.case:13} {self.what:62} {self.value:10.4g} {self.unit:9} {bound}"


def markdown(figures: Sequence[Figure], cores: int) -> str:
    """The page."""
    lines = [
        "# The protected Python client, measured",
        "",
        f"By `benches/client.py` on {cores} cores, {time.strftime('%Y-%m-%d')}. CPU time is that of",
        "the thread or process named; medians of repeated rounds.",
        "",
        "| case | what | figure | target | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for figure in figures:
        bound = "" if figure.target is None else f"{'≥' if figure.is_floor else '≤'} {figure.target:g}"
        verdict = {None: "", True: "met", False: "**missed**"}[figure.is_met]
        value = f"{figure.value:.4g} {figure.unit}"
        lines.append(f"| {figure.case} | {figure.what} | {value} | {bound} | {verdict} |")
    return "\n".join(lines) + "\n"


def cpu_us_per_call(call: Callable[[], object], calls: int, rounds: int = 7) -> float:
    """Median over rounds of this thread's CPU microseconds per call, the loop included."""
    spent = []
    for _ in range(rounds):
        start = time.thread_time_ns()
        for _ in range(calls):
            call()
        spent.append((time.thread_time_ns() - start) / calls / 1e3)
    return median(spent)
