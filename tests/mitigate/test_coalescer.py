"""The in-process lock per key: one load for all, and nobody stranded."""

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from keyheat.errors import ConfigError, ShedError, WaitTimeoutError
from keyheat.mitigate.coalescer import Coalescer
from keyheat.mitigate.shedder import Shedder
from tests.mitigate.crowd import WAYS, Source, crowd, soon

LONG_S = 30.0


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(coalescer: Coalescer, source: Source, key: bytes = b"k", **more: Any) -> Callable[[], Any]:
    """A call through the coalescer, of the kind the source's way needs."""
    if source.way == "tasks":
        return lambda: coalescer.run_async(key, source.load, **more)
    return lambda: coalescer.run(key, source.load, **more)


@pytest.mark.parametrize("count", [64, 200])
async def test_one_loads_and_all_get_it(way: str, count: int) -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source(way, 0)
    source.until = lambda: coalescer.stats().waiting == count - 1
    got = await crowd(way, count, run(coalescer, source))
    assert got == [b"loaded"] * count
    assert source.calls == 1
    assert (coalescer.stats().joined, coalescer.stats().in_flight) == (count - 1, 0)


async def test_keys_do_not_wait_for_each_other(way: str) -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source(way, 0.1)
    calls = iter([run(coalescer, source, b"%d" % number) for number in range(8)])
    lock = threading.Lock()

    def next_call() -> Any:
        with lock:
            call = next(calls)
        return call()

    await crowd(way, 8, next_call)
    assert source.at_once_max == 8


async def test_callers_one_after_another_each_load(way: str) -> None:
    coalescer, source = Coalescer(), Source(way, 0)
    for _ in range(3):
        await crowd(way, 1, run(coalescer, source))
    assert source.calls == 3


async def test_a_failed_load_fails_for_all_who_waited_and_is_not_repeated(way: str) -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source(way, 0)
    source.until = lambda: coalescer.stats().waiting == 31
    source.error = ValueError("no such row")
    got = await crowd(way, 32, run(coalescer, source))
    assert {str(each) for each in got} == {"no such row"}
    assert source.calls == 1
    assert len({id(each) for each in got}) == 32
    assert sum(each.__cause__ is source.error for each in got) == 31
    source.error, source.until = None, lambda: True
    assert await crowd(way, 1, run(coalescer, source)) == [b"loaded"]


async def test_an_error_that_cannot_be_copied_is_shared(way: str) -> None:
    class OddError(Exception):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(one + two)

    coalescer, source = Coalescer(wait_s=LONG_S), Source(way, 0)
    source.until = lambda: coalescer.stats().waiting == 3
    source.error = OddError("a", "b")
    assert {type(each) for each in await crowd(way, 4, run(coalescer, source))} == {OddError}


async def test_at_the_end_of_the_budget_each_loads_by_itself(way: str) -> None:
    coalescer, source = Coalescer(0.05), Source(way, 0.5)
    got = await crowd(way, 8, run(coalescer, source))
    assert got == [b"loaded"] * 8
    assert source.calls == 8
    assert coalescer.stats().in_flight == 0


async def test_a_shedder_limits_those_who_load_by_themselves(way: str) -> None:
    shedder = Shedder(2, queue=0)
    coalescer, source = Coalescer(0.05, shedder=shedder), Source(way, 0.5)
    got = await crowd(way, 8, run(coalescer, source))
    assert source.calls == 3  # the leader, and two under the limit
    assert sum(isinstance(each, ShedError) for each in got) == 5
    assert shedder.stats().in_flight == 0


async def test_a_stuck_load_is_replaced_for_those_who_come_later(way: str) -> None:
    coalescer, stuck, quick = Coalescer(0.05), Source(way, 0.5), Source(way, 0.04, b"new")
    old = asyncio.create_task(crowd(way, 1, run(coalescer, stuck)))
    await soon(lambda: stuck.calls == 1)
    await asyncio.sleep(0.06)
    assert await crowd(way, 16, run(coalescer, quick)) == [b"new"] * 16
    assert quick.calls < 16
    assert await old == [b"loaded"]


async def test_the_budget_is_the_leaders(way: str) -> None:
    coalescer, source = Coalescer(0.2, on_timeout="raise"), Source(way, 0.6)
    leading = asyncio.create_task(crowd(way, 1, run(coalescer, source)))
    await soon(lambda: source.calls == 1)
    await asyncio.sleep(0.25)
    began_s = time.monotonic()
    got = await crowd(way, 4, run(coalescer, source))
    assert {type(each) for each in got} == {WaitTimeoutError}
    assert time.monotonic() - began_s < 0.2
    await leading


async def test_stale_is_served_to_those_who_have_it(way: str) -> None:
    coalescer, source = Coalescer(0.05, on_timeout="stale"), Source(way, 0.4)
    leading = asyncio.create_task(crowd(way, 1, run(coalescer, source)))
    await soon(lambda: source.calls == 1)
    assert await crowd(way, 2, run(coalescer, source, stale=b"old")) == [b"old"] * 2
    assert [type(each) for each in await crowd(way, 1, run(coalescer, source))] == [WaitTimeoutError]
    await leading
    assert source.calls == 1


async def test_a_caller_joins_only_a_load_young_enough(way: str) -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source(way, 0.3)
    leading = asyncio.create_task(crowd(way, 1, run(coalescer, source)))
    await soon(lambda: source.calls == 1)
    await asyncio.sleep(0.1)
    younger = asyncio.create_task(crowd(way, 1, run(coalescer, source, max_age_s=0.05)))
    await soon(lambda: source.calls == 2)
    await crowd(way, 3, run(coalescer, source, max_age_s=0.25))
    assert source.calls == 2
    await asyncio.gather(leading, younger)
    assert coalescer.stats().in_flight == 0


async def test_a_forgotten_load_is_not_joined(way: str) -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source(way, 0.2)
    leading = asyncio.create_task(crowd(way, 1, run(coalescer, source)))
    await soon(lambda: source.calls == 1)
    coalescer.forget(b"k")
    await crowd(way, 1, run(coalescer, source))
    assert source.calls == 2
    await leading


async def test_when_the_leader_is_cancelled_one_waiter_takes_over() -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source("tasks", 0.1)
    leader = asyncio.create_task(coalescer.run_async(b"k", source.load))
    await soon(lambda: source.calls == 1)
    waiters = [asyncio.create_task(coalescer.run_async(b"k", source.load)) for _ in range(50)]
    await asyncio.sleep(0)
    leader.cancel()
    assert await asyncio.gather(*waiters) == [b"loaded"] * 50
    assert (source.calls, coalescer.stats().taken_over) == (2, 1)
    assert leader.cancelled()


async def test_cancelled_waiters_leave_the_others_alone() -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source("tasks", 0.1)
    tasks = [asyncio.create_task(coalescer.run_async(b"k", source.load)) for _ in range(20)]
    await soon(lambda: source.calls == 1)
    for task in tasks[1::2]:
        task.cancel()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert got.count(b"loaded") == 10
    assert source.calls == 1


def test_a_leader_whose_loop_was_closed_is_noticed() -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source("threads", 0)
    loop = asyncio.new_event_loop()
    task = loop.create_task(coalescer.run_async(b"k", lambda: asyncio.sleep(LONG_S)))
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert coalescer.run(b"k", source.load) == b"loaded"
    task._log_destroy_pending = False  # type: ignore[attr-defined] # it is meant to be left pending


def test_a_leader_whose_thread_died_is_noticed() -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source("threads", 0)
    steps: Any = coalescer.steps(b"k", lambda: iter([None]))  # type: ignore[arg-type,return-value]
    thread = threading.Thread(target=lambda: next(steps))  # leads, and ends without a word
    thread.start()
    thread.join()
    assert coalescer.run(b"k", source.load) == b"loaded"
    steps.close()


def test_a_dropped_coroutine_wakes_those_who_wait() -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source("threads", 0)
    leaders: list[Any] = [coalescer.run_async(b"k", lambda: asyncio.sleep(LONG_S))]

    async def begin() -> None:
        leaders[0].send(None)

    asyncio.run(begin())
    got: list[bytes] = []
    waiter = threading.Thread(target=lambda: got.append(coalescer.run(b"k", source.load)))
    waiter.start()
    leaders.clear()
    gc.collect()
    waiter.join(LONG_S)
    assert got == [b"loaded"]


def test_several_loops_and_threads_share_one_load() -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source("tasks", 0.3)
    blocking = Source("threads", 0)
    source.until = blocking.until = lambda: coalescer.stats().waiting == 115
    got: list[Any] = []

    def loop() -> None:
        got.extend(asyncio.run(crowd("tasks", 25, run(coalescer, source))))

    def thread() -> None:
        got.append(coalescer.run(b"k", blocking.load))

    started = [threading.Thread(target=work) for work in [loop] * 4 + [thread] * 16]
    for each in started:
        each.start()
    for each in started:
        each.join()
    assert got == [b"loaded"] * 116
    assert source.calls + blocking.calls == 1


async def test_who_would_wait_for_itself_runs_its_own() -> None:
    coalescer = Coalescer(wait_s=LONG_S)
    assert coalescer.run(b"k", lambda: coalescer.run(b"k", lambda: 1)) == 1

    async def inner() -> int:
        return 2

    async def outer() -> int:
        return await asyncio.create_task(coalescer.run_async(b"k", inner))

    assert await coalescer.run_async(b"k", outer) == 2
    leader = asyncio.create_task(coalescer.run_async(b"k", lambda: asyncio.sleep(0.05, 3)))
    await asyncio.sleep(0.01)
    assert coalescer.run(b"k", lambda: 4) == 4  # blocking, on the very loop that loads
    assert await leader == 3


def test_a_forked_child_starts_empty(way: str) -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source("threads", 0.3)
    leader = threading.Thread(target=lambda: coalescer.run(b"k", source.load))
    leader.start()
    while not source.calls:
        time.sleep(0.001)
    child = os.fork()
    if child == 0:
        mine = Source(way, 0, b"mine")
        call = run(coalescer, mine)
        value = asyncio.run(call()) if way == "tasks" else call()
        os._exit(0 if value == b"mine" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leader.join()


async def test_switched_off_everybody_loads(way: str) -> None:
    coalescer, source = Coalescer(wait_s=LONG_S), Source(way, 0.05)
    coalescer.enabled = False
    await crowd(way, 8, run(coalescer, source))
    assert source.calls == 8


@pytest.mark.parametrize(
    ("name", "settings"),
    [("wait_s", {"wait_s": 0}), ("recheck_s", {"recheck_s": 0}), ("on_timeout", {"on_timeout": "no"})],
)
def test_a_bad_setting_is_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=name):
        Coalescer(**settings)
