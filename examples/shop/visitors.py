"""The visitors: connections over which each request follows the answer to the one before, for some seconds.

The client is as small as it can be, so that it is the shop that is measured.
"""

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any, Final

from examples.shop.shop import SALE_ITEM

ITEMS: Final = 200
SALE_SHARE: Final = 0.7
BUY_SHARE: Final = 0.04
UNANSWERED: Final = 0  # in place of an http status
_PATIENCE_S: Final = 15.0
_HEAD_MAX_BYTES: Final = 1 << 16


@dataclass(slots=True)
class Seen:
    """What the visitors saw."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def percentile_ms(self, share: float) -> float:
        """The latency that this share of the requests did not exceed."""
        ordered = sorted(self.latencies_s)
        return 1_000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def visit(port: int, *, visitors: int, seconds: float) -> Seen:
    """Have so many visitors, for so long."""
    seen = Seen()
    began_s = time.monotonic()
    until_s = began_s + seconds
    await asyncio.gather(*(_visitor(port, number, until_s, seen) for number in range(visitors)))
    seen.seconds = time.monotonic() - began_s
    return seen


async def ask(port: int, path: str) -> dict[str, Any]:
    """One GET, and the JSON object that was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_HEAD_MAX_BYTES)
    _, body = await _request(reader, writer, f"GET {path}")
    writer.close()
    await writer.wait_closed()
    answer: dict[str, Any] = json.loads(body)
    return answer


async def _visitor(port: int, number: int, until_s: float, seen: Seen) -> None:
    chance = random.Random(number)  # the same visitors in both sales
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_HEAD_MAX_BYTES)
    orders = 0
    while time.monotonic() < until_s:
        item = SALE_ITEM if chance.random() < SALE_SHARE else 1 + int(ITEMS * chance.random() ** 3)
        what = f"GET /item/{item}"
        if chance.random() < BUY_SHARE:
            orders += 1
            what = f"POST /buy/{SALE_ITEM}?visitor={number}-{orders}"
        began_s = time.perf_counter()
        status = UNANSWERED
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                status, _ = await _request(reader, writer, what)
        seen.latencies_s.append(time.perf_counter() - began_s)
        seen.statuses[status] = seen.statuses.get(status, 0) + 1
        if status == UNANSWERED:
            break
    writer.close()


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str
) -> tuple[int, bytes]:
    writer.write(f"{what} HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)
