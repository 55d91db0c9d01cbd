"""Clients of the proxy that know what each reply must be, and what was acknowledged to them.

Each sends pipelines of commands whose replies name their request: an ECHO of a token nobody else has, a
GET of a key only this client writes, and a number appended to a list of its own. Whatever fails is not
tried again, so a number that is in the list twice was sent twice by somebody else. Now and then a client
goes away in the middle.
"""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.soak.wire import Refused, Wire, Word, take_turns

# Of pipelines: after how many of them the client leaves without waiting for the replies.
LEAVES = 0.01
FAULTS_MAX = 5


class Written(NamedTuple):
    """An acknowledged write."""

    at: float
    number: int
    sent: float


@dataclass
class Matched:
    """One client, in a thread of its own, until `stop()`."""

    address: str
    tag: str
    seed: int
    acknowledged: list[Written] = field(default_factory=list)
    attempted: int = 0
    replies: int = 0
    left: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin."""
        self._random = random.Random(self.seed)
        self._over = threading.Event()
        self._sent = 0.0
        self._own: set[bytes | None] = {None}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def list_key(self) -> str:
        """Where its numbers are appended."""
        return f"{{{self.tag}}}:list:{self.seed}"

    def stop(self) -> None:
        """End; a client that does not end says so."""
        self._over.set()
        self._thread.join(30)
        if self._thread.is_alive():
            self.wrong.append(f"the client of {self.list_key} hangs")

    def first_after(self, moment: float) -> float | None:
        """When the first write after a moment was acknowledged."""
        return next((each.at for each in list(self.acknowledged) if each.at > moment), None)

    def _run(self) -> None:
        def failed(error: Exception) -> None:
            self.errors[type(error).__name__] += 1

        take_turns(self.address, self._over, self._turn, failed)

    def _turn(self, wire: Wire) -> bool:
        """One pipeline; whether the connection is still there."""
        commands = [self._command() for _ in range(self._random.randint(1, 6))]
        self._sent = time.monotonic()
        wire.send(*(command for command, _ in commands))
        if self._random.random() < LEAVES:
            wire.close()
            self.left += 1
            return False
        refused, known = False, len(self.wrong)
        for command, number in commands:
            reply = wire.reply()
            self.replies += 1
            refused |= self._judge(command, number, reply)
        if len(self.wrong) > known:  # what follows would be wrong too
            wire.close()
            return False
        if refused:
            time.sleep(0.005)
        return True

    def _command(self) -> tuple[tuple[Word, ...], int]:
        self.attempted += 1
        number = self.attempted
        name = f"{{{self.tag}}}:own:{self.seed}"
        kind = self._random.choice(("echo", "push", "push", "get", "set"))
        if kind == "echo":
            return ("ECHO", f"{self.seed}:{number}"), number
        if kind == "push":
            return ("RPUSH", self.list_key, number), number
        if kind == "get":
            return ("GET", name), number
        # Its outcome may stay unknown, so the value counts as written from now on.
        value = f"{name}={number}"
        self._own.add(value.encode())
        return ("SET", name, value), number

    def _judge(self, command: tuple[Word, ...], number: int, reply: object) -> bool:
        """Note what came; whether it was an error reply."""
        if isinstance(reply, Refused):
            self.errors[reply.split(" ")[0]] += 1
            return True
        kind = command[0]
        if kind == "RPUSH" and isinstance(reply, int):
            self.acknowledged.append(Written(time.monotonic(), number, self._sent))
            return False
        is_right = (
            (kind == "ECHO" and reply == str(command[1]).encode())
            or (kind == "GET" and reply in self._own)
            or (kind == "SET" and reply == b"OK")
        )
        if not is_right and len(self.wrong) < FAULTS_MAX:
            self.wrong.append(f"{command} was answered with {reply!r}")
        return False
