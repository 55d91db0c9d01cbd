"""Shared memory between the demo and its client processes: the phase, and what each has done.

One 64-bit cell for the phase, written by the demo only, then for each client a row of counters for
each phase, written by that client only. A file in the run's private directory, mapped by all.
"""

import mmap
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Final


class Phase(IntEnum):
    """What is being played."""

    WAIT = 0
    TRACE_BEFORE = 1
    SALE_BEFORE = 2
    TRACE_AFTER = 3
    SALE_AFTER = 4
    STOP = 5

    @property
    def is_sale(self) -> bool:
        """Whether the flash sale is on."""
        return self in (Phase.SALE_BEFORE, Phase.SALE_AFTER)


class Cell(IntEnum):
    """The counters a client has in each phase."""

    READS = 0
    SALE_READS = 1
    WRITES = 2
    ERRORS = 3


_CELL_BYTES: Final = 8
_ROW: Final = len(Phase) * len(Cell)


class Board:
    """The mapped file."""

    def __init__(self, path: Path, clients: int, *, is_new: bool = False) -> None:
        size = _CELL_BYTES * (1 + clients * _ROW)
        if is_new:
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._cells = memoryview(self._map).cast("q")
        self._clients = clients

    @property
    def phase(self) -> Phase:
        """What is being played now."""
        return Phase(self._cells[0])

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._cells[0] = phase

    def count(self, client: int, phase: Phase, cell: Cell) -> None:
        """Add one to a counter of this client."""
        self._cells[1 + client * _ROW + phase * len(Cell) + cell] += 1

    def total(self, cell: Cell, phases: Iterable[Phase] = Phase) -> int:
        """A counter summed over all clients, and over some phases."""
        wanted = tuple(phases)
        return sum(
            self._cells[1 + client * _ROW + phase * len(Cell) + cell]
            for client in range(self._clients)
            for phase in wanted
        )

    def close(self) -> None:
        """Unmap."""
        self._cells.release()
        self._map.close()
