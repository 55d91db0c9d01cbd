"""Congestion control: the bound, the queue, and that no slot is ever lost."""

import asyncio
import os
import threading
import time
from typing import Any

import pytest

from keyheat.errors import ConfigError, ShedError
from keyheat.mitigate.gradient import GradientLimit
from keyheat.mitigate.shedder import Shedder
from tests.mitigate.crowd import WAYS, Source, crowd, soon


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def through(shedder: Shedder, source: Source) -> Any:
    """A call through the shedder, of the kind the source's way needs."""

    def call() -> Any:
        with shedder.slot():
            return source.load()

    async def call_async() -> Any:
        async with shedder.slot_async():
            return await source.load()

    return call_async if source.way == "tasks" else call


async def test_never_more_than_the_limit_and_all_get_their_turn(way: str) -> None:
    shedder, source = Shedder(4, queue=60, queue_timeout_s=10), Source(way, 0.005)
    got = await crowd(way, 64, through(shedder, source))
    assert got == [b"loaded"] * 64
    assert source.at_once_max == 4
    assert shedder.stats().in_flight == shedder.stats().waiting == 0


async def test_what_is_beyond_the_queue_is_turned_back_at_once(way: str) -> None:
    shedder, source = Shedder(2, queue=3, queue_timeout_s=10), Source(way, 0.3)
    began_s = time.monotonic()
    waits: list[float] = []

    def turned_back(error: object) -> bool:
        return isinstance(error, ShedError)

    call = through(shedder, source)

    async def timed() -> Any:
        try:
            return await call()
        finally:
            waits.append(time.monotonic() - began_s)

    got = await crowd(way, 20, timed if way == "tasks" else call)
    assert sum(map(turned_back, got)) == 15 == shedder.stats().shed
    assert got.count(b"loaded") == 5
    assert sorted(waits)[:15] == pytest.approx([0.0] * len(waits[:15]), abs=0.25)


async def test_waiting_in_vain_ends_after_the_timeout(way: str) -> None:
    shedder, source = Shedder(1, queue=1, queue_timeout_s=0.05), Source(way, 0.5)
    got = await crowd(way, 2, through(shedder, source))
    assert sorted(type(each).__name__ for each in got) == ["ShedError", "bytes"]
    assert (shedder.stats().timed_out, shedder.stats().waiting, shedder.stats().in_flight) == (1, 0, 0)


async def test_an_exception_gives_the_slot_back(way: str) -> None:
    shedder, source = Shedder(1, queue=8), Source(way, 0)
    source.error = ValueError("no")
    got = await crowd(way, 8, through(shedder, source))
    assert {type(each) for each in got} == {ValueError}
    assert shedder.stats().in_flight == 0


async def test_cancelled_holders_and_waiters_lose_no_slot() -> None:
    shedder, source = Shedder(2, queue=50, queue_timeout_s=10), Source("tasks", 0.02)
    call = through(shedder, source)
    for seed in range(10):
        tasks = [asyncio.create_task(call()) for _ in range(20)]
        await asyncio.sleep(0.003 * seed)
        for task in tasks[seed % 3 :: 2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (shedder.stats().in_flight, shedder.stats().waiting) == (0, 0)


async def test_a_waiter_cancelled_as_it_gets_the_slot_passes_it_on() -> None:
    shedder = Shedder(1, queue=2, queue_timeout_s=10)
    source = Source("tasks", 0)
    with shedder.slot():
        first = asyncio.create_task(through(shedder, source)())
        second = asyncio.create_task(through(shedder, source)())
        await soon(lambda: shedder.stats().waiting == 2)
    first.cancel()  # it has the slot, and has not run since
    assert await second == b"loaded"
    assert shedder.stats().in_flight == 0


async def test_threads_and_loops_share_one() -> None:
    shedder, of_tasks, of_threads = (
        Shedder(3, queue=99, queue_timeout_s=10),
        Source("tasks"),
        Source("threads"),
    )
    of_tasks.seconds = of_threads.seconds = 0.005
    peak = 0

    def other_loop() -> None:
        asyncio.run(crowd("tasks", 20, through(shedder, of_tasks)))

    thread = threading.Thread(target=other_loop)
    thread.start()
    working = asyncio.gather(
        crowd("tasks", 20, through(shedder, of_tasks)), crowd("threads", 20, through(shedder, of_threads))
    )
    while not working.done():
        peak = max(peak, shedder.stats().in_flight)
        await asyncio.sleep(0)
    thread.join()
    assert shedder.stats().admitted == of_tasks.calls + of_threads.calls == 60
    assert peak == 3
    assert shedder.stats().in_flight == 0


async def test_switched_off_everybody_passes_those_who_wait_included(way: str) -> None:
    shedder, source = Shedder(1, queue=9, queue_timeout_s=10), Source(way, 0.2)
    crowding = asyncio.create_task(crowd(way, 8, through(shedder, source)))
    await soon(lambda: shedder.stats().waiting == 7)
    shedder.enabled = False
    await crowding
    assert source.at_once_max == 8
    assert shedder.stats().in_flight == 0


def test_a_forked_child_starts_empty_and_does_not_touch_the_parents_slot() -> None:
    shedder = Shedder(1, queue=0)
    with shedder.slot():
        child = os.fork()
        if child == 0:
            with shedder.slot():
                in_flight = shedder.stats().in_flight
            os._exit(0 if in_flight == 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert shedder.stats().in_flight == 1
    assert shedder.stats().in_flight == 0


def test_a_slot_held_while_forking_counts_in_the_parent_only() -> None:
    shedder = Shedder(1, queue=0)
    slot = shedder.slot()
    slot.__enter__()
    child = os.fork()
    if child == 0:
        slot.__exit__(None, None, None)
        os._exit(0 if shedder.stats().in_flight == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    slot.__exit__(None, None, None)


def windows(limit: GradientLimit, count: int, seconds: float, at_s: float, **more: Any) -> float:
    """Feed `count` windows of calls that each took `seconds`; returns the time then."""
    for _ in range(count):
        for _ in range(20):
            at_s += 0.01
            wishes = {"in_flight": limit.limit, "is_failure": False, **more}
            limit.record(at_s, seconds, **wishes)
    return at_s


def test_the_adaptive_limit_falls_with_latency_and_recovers_gradually() -> None:
    limit = GradientLimit(100)
    at_s = windows(limit, 20, 0.010, 0.0)
    assert limit.limit == 100
    at_s = windows(limit, 20, 0.100, at_s)
    assert limit.limit < 30
    seen = []
    for _ in range(60):
        at_s = windows(limit, 1, 0.010, at_s)
        seen.append(limit.limit)
    assert seen == sorted(seen)
    assert seen[0] < 40
    assert seen[-1] == 100


def test_failures_lower_the_limit_but_never_to_nothing() -> None:
    limit = GradientLimit(50)
    windows(limit, 100, 0.010, 0.0, is_failure=True)
    assert limit.limit == 1


def test_an_unused_limit_is_not_raised() -> None:
    limit = GradientLimit(100)
    at_s = windows(limit, 10, 0.010, 0.0)
    at_s = windows(limit, 20, 0.100, at_s)
    at_s = windows(limit, 2, 0.100, at_s, in_flight=1)
    low = limit.limit
    windows(limit, 20, 0.010, at_s, in_flight=1)
    assert limit.limit == low


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("limit", {"limit": 0}),
        ("queue", {"limit": 1, "queue": -1}),
        ("queue_timeout_s", {"limit": 1, "queue_timeout_s": -1}),
    ],
)
def test_a_bad_setting_is_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=name):
        Shedder(**settings)
