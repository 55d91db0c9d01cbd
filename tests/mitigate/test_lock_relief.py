"""Relieved locks: the library's lock in all it does, one question per host and interval."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.lock
import redis.lock
from valkey import exceptions as valkey_exceptions
from valkey.asyncio.lock import Lock as AsyncValkeyLock
from valkey.lock import Lock as ValkeyLock

from keyheat.errors import ConfigError
from keyheat.mitigate._host_turn import HostTurns
from keyheat.mitigate._lock_line import Ask, Attempt, Lines, Wait, Waiter
from keyheat.mitigate.lock_relief import LockRelief
from keyheat.server.embedded import EmbeddedServer
from tests.mitigate.crowd import WAYS, crowd
from tests.mitigate.kinds import Clients, done


def contending(
    lines: Lines, now: list[float], sleep_s: float, deadline_s: float | None, take_turn: Any
) -> Any:
    """The steps of one contender, by a clock of the test."""
    waiter = Waiter(lambda: None)
    return Attempt(
        lines, b"l", waiter, sleep_s, deadline_s, 0.1, lambda: now[0], take_turn, lambda _: None
    ).contend()


BASES: dict[str, Any] = {
    "redis": redis.lock.Lock,
    "redis-asyncio": redis.asyncio.lock.Lock,
    "valkey": ValkeyLock,
    "valkey-asyncio": AsyncValkeyLock,
}


@pytest.fixture
def relief(tmp_path: Path) -> LockRelief:
    return LockRelief(directory=tmp_path / "turns")


def sets(address: str) -> int:
    host, _, port = address.rpartition(":")
    with redis.Redis(host, int(port)) as client:
        stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_set", {}).get("calls", 0))


async def test_a_relieved_lock_is_the_librarys_lock_and_behaves_so(
    clients: Clients, valkey: str, relief: LockRelief
) -> None:
    client = clients.standalone(valkey)
    lock = relief.lock(client, "lock", timeout=10, sleep=0.01)
    other = relief.lock(client, "lock", timeout=10, sleep=0.01)
    assert isinstance(lock, BASES[clients.kind])
    errors: Any = redis.exceptions if clients.kind.startswith("redis") else valkey_exceptions
    assert await done(lock.acquire(token="mine")) is True
    assert await done(client.get("lock")) == b"mine"
    assert await done(lock.locked())
    assert await done(lock.owned())
    assert not await done(other.owned())
    assert await done(other.acquire(blocking=False)) is False
    assert await done(other.acquire(blocking_timeout=0)) is False
    started = time.monotonic()
    assert await done(other.acquire(blocking_timeout=0.05)) is False
    assert time.monotonic() - started < 1
    assert await done(lock.extend(10)) is True
    assert await done(client.pttl("lock")) > 15_000
    assert await done(lock.reacquire()) is True
    assert await done(client.pttl("lock")) <= 10_000
    await done(lock.release())
    with pytest.raises(errors.LockError):
        await done(lock.release())
    assert await done(lock.acquire())
    await done(client.delete("lock"))
    with pytest.raises(errors.LockNotOwnedError):
        await done(lock.release())
    assert relief.stats().waiting == 0
    assert relief.stats().gave_up == 1


async def test_as_a_context_manager_it_releases(clients: Clients, valkey: str, relief: LockRelief) -> None:
    client = clients.standalone(valkey)
    lock = relief.lock(client, "lock", timeout=10)
    if clients.kind.endswith("asyncio"):
        async with lock:
            assert await client.exists("lock")
    else:
        with lock:
            assert client.exists("lock")
    assert not await done(client.exists("lock"))


async def test_it_works_on_a_cluster(clients: Clients, cluster: Any, relief: LockRelief) -> None:
    client = await clients.cluster(cluster.addresses[0])
    lock = relief.lock(client, "lock", timeout=10)
    assert await done(lock.acquire(token="mine"))
    assert await done(lock.owned())
    await done(lock.release())


def test_threads_get_the_lock_in_their_order_and_promptly(valkey: str, relief: LockRelief) -> None:
    host, _, port = valkey.rpartition(":")
    order: list[int] = []
    with redis.Redis(host, int(port)) as client:
        first = relief.lock(client, "lock", timeout=30)
        assert first.acquire()

        def contend(number: int) -> None:
            with relief.lock(client, "lock", timeout=30, sleep=2.0):
                order.append(number)

        threads = []
        for number in range(12):
            threads.append(threading.Thread(target=contend, args=(number,)))
            threads[-1].start()
            while relief.stats().waiting <= number:
                time.sleep(0.001)
        started = time.monotonic()
        first.release()
        for thread in threads:
            thread.join()
        assert order == list(range(12))
        assert time.monotonic() - started < 1.5  # twelve times `sleep` would be 24 s


CONTENDERS = """
import asyncio, sys, threading, time, redis, redis.asyncio
from pathlib import Path
from keyheat.mitigate.lock_relief import LockRelief
port, count, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sleep, seconds = float(sys.argv[4]), float(sys.argv[5])
sys.stdin.readline()
relief = LockRelief(directory=Path(directory) if directory != "-" else None, host_wide=directory != "-")
got = 0
async def main():
    client = redis.asyncio.Redis(port=port)
    async def one():
        global got
        lock = relief.lock(client, "lock", timeout=30, sleep=sleep, blocking_timeout=seconds)
        if await lock.acquire():
            got += 1
            await asyncio.sleep(0.001)
            await lock.release()
    waiters = [asyncio.ensure_future(one()) for _ in range(count)]
    await asyncio.sleep(0)
    print("waiting", flush=True)
    await asyncio.gather(*waiters)
    await client.aclose()
asyncio.run(main())
print(got, relief.stats().asked, flush=True)
"""


def contenders(
    port: int, count: int, directory: Any, sleep: float, seconds: float, *, is_told_later: bool = False
) -> "subprocess.Popen[str]":
    words = [
        sys.executable,
        "-c",
        CONTENDERS,
        str(port),
        str(count),
        str(directory),
        str(sleep),
        str(seconds),
    ]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if not is_told_later:
        tell(process)
    return process


def tell(process: "subprocess.Popen[str]") -> None:
    """Let the contenders begin."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.parametrize("host_wide", [True, False])
def test_a_thousand_contenders_in_eight_processes_ask_eight_times_per_interval_at_most(
    own_server: EmbeddedServer, tmp_path: Path, host_wide: bool
) -> None:
    with own_server.client() as client:
        client.set("lock", "held by somebody else")
        directory = tmp_path / "turns" if host_wide else "-"
        sleep_s = 0.1
        processes = [contenders(own_server.port, 125, directory, sleep_s, 60.0) for _ in range(8)]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "waiting\n"
            before, began = sets(own_server.address), time.monotonic()
            time.sleep(1.0)  # what is measured: ten intervals
            asked = sets(own_server.address) - before
            intervals = (time.monotonic() - began) / sleep_s
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        assert 0 < asked <= (intervals + 1) * (1 if host_wide else 8)


@pytest.mark.parametrize("host_wide", [True, False])
def test_a_thousand_timeouts_that_end_together_cost_no_more_than_eight_per_interval(
    own_server: EmbeddedServer, tmp_path: Path, host_wide: bool
) -> None:
    sleep_s = 0.2
    asked_at: list[float] = []
    with own_server.client() as client, own_server.client() as watcher, watcher.monitor() as seen:
        client.set("lock", "held by somebody else")

        def watch() -> None:
            for each in seen.listen():
                if each["command"].startswith("SET lock "):
                    asked_at.append(each["time"])
                if each["command"] == "PING":
                    return

        watching = threading.Thread(target=watch)
        watching.start()
        directory = tmp_path / "turns" if host_wide else "-"
        processes = [
            contenders(own_server.port, 125, directory, sleep_s, 1.0, is_told_later=True) for _ in range(8)
        ]
        for process in processes:
            tell(process)
        for process in processes:
            assert process.communicate(timeout=60)[0].split()[:2] == ["waiting", "0"]
        client.ping()
        watching.join(10)
    asked_at = asked_at[1:]  # the first is that of "somebody else"
    most = max(sum(at <= each < at + sleep_s for each in asked_at) for at in asked_at)
    assert most <= 8


@pytest.mark.parametrize("is_held_here", [True, False])
@pytest.mark.parametrize("way", WAYS)
async def test_timeouts_that_end_together_cost_one_question_per_interval(
    own_server: EmbeddedServer, relief: LockRelief, way: str, is_held_here: bool
) -> None:
    clients = Clients("redis-asyncio" if way == "tasks" else "redis")
    client = clients.standalone(own_server.address)
    holder = relief.lock(client, "lock", timeout=30, thread_local=False)
    if is_held_here:
        assert await done(holder.acquire())
    else:
        await done(client.set("lock", "held by somebody else"))
    before = sets(own_server.address)

    def contend() -> Any:
        return relief.lock(client, "lock", timeout=30, sleep=0.1, blocking_timeout=1.0).acquire()

    outcomes = await crowd(way, 40, contend)
    asked = sets(own_server.address) - before
    await clients.close()
    assert outcomes == [False] * 40
    assert 3 <= asked <= 12  # ten intervals, and not all begin in the same instant


@pytest.mark.parametrize("timeout_s", [0.125, 0.5, 0.625, 1.0, 2.0])
@pytest.mark.parametrize("sleep_s", [0.125, 0.25, 0.75, 4.0])
def test_one_contender_alone_asks_as_often_as_the_librarys_lock(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float, sleep_s: float
) -> None:
    now = [100.0]

    class Time:
        monotonic = staticmethod(lambda: now[0])

        @staticmethod
        def sleep(seconds: float) -> None:
            now[0] += seconds

    class Held(redis.lock.Lock):
        asked = 0

        def do_acquire(self, _: str) -> bool:
            self.asked += 1
            return False

    monkeypatch.setattr(redis.lock, "mod_time", Time)
    theirs = Held(redis.Redis(), "lock", sleep=sleep_s, blocking_timeout=timeout_s)
    assert theirs.acquire() is False
    now[0] = 100.0
    ours = contending(Lines(16), now, sleep_s, now[0] + timeout_s, lambda _: 1)
    asked = 0
    step = next(ours)
    while True:
        if isinstance(step, Wait):
            now[0] += step.seconds or 0.0
        else:
            asked += 1
        with contextlib.suppress(StopIteration):
            step = ours.send(False)
            continue
        break
    assert asked == theirs.asked


def test_a_new_head_asks_when_it_is_due_or_the_lock_is_released_here() -> None:
    now = [0.0]
    lines = Lines(16)
    first, second, third, fourth = (
        contending(lines, now, 1.0, deadline_s, lambda _: 1) for deadline_s in (1.5, 1.5, 9.0, 9.0)
    )
    assert next(first) == Ask()
    assert [next(each) for each in (second, third, fourth)] == [Wait(1.5), Wait(9.0), Wait(9.0)]
    assert first.send(False) == Wait(1.0)
    now[0] = 1.0
    assert first.send(False) == Ask()
    with pytest.raises(StopIteration):
        first.send(False)  # no time for another question
    assert second.send(True) == Wait(0.5)  # head now, and the question just before was as good as its own
    now[0] = 1.625
    with pytest.raises(StopIteration) as end:
        second.send(False)
    assert end.value.value is False
    assert third.send(True) == Wait(0.375)
    lines.released(b"l", 1.0, now[0])
    assert third.send(True) == Ask()
    assert third.send(False) == Wait(1.0)
    third.close()
    assert fourth.send(True) == Wait(1.0)
    now[0] = 2.625
    assert fourth.send(False) == Ask()
    with pytest.raises(StopIteration) as end:
        fourth.send(True)
    assert end.value.value is True
    assert lines.waiting == 0


def test_processes_share_a_lock_and_none_starves(own_server: EmbeddedServer, tmp_path: Path) -> None:
    processes = [contenders(own_server.port, 60, tmp_path / "turns", 0.02, 30.0) for _ in range(3)]
    for process in processes:
        out = process.communicate(timeout=60)[0].split()
        assert out[:2] == ["waiting", "60"]


def test_a_process_killed_with_the_hosts_turn_strands_nobody(
    own_server: EmbeddedServer, tmp_path: Path, eventually: Any
) -> None:
    with own_server.client() as client:
        client.set("lock", "held by somebody else")
        doomed = contenders(own_server.port, 5, tmp_path / "turns", 0.02, 30.0)
        eventually(lambda: sets(own_server.address) > 3)
        relief = LockRelief(directory=tmp_path / "turns")
        lock = relief.lock(client, "lock", timeout=10, sleep=0.02)
        # The kind is the server's address: one on another client of the same server has the same turn.
        taker = threading.Thread(target=lock.acquire)
        taker.start()
        doomed.kill()
        doomed.communicate()
        client.delete("lock")
        taker.join(10)
        assert not taker.is_alive()


async def test_a_cancelled_head_strands_nobody(valkey: str, relief: LockRelief) -> None:
    host, _, port = valkey.rpartition(":")
    async with redis.asyncio.Redis(host=host, port=int(port)) as client:
        holder = relief.lock(client, "lock", timeout=30, thread_local=False)
        assert await holder.acquire()
        tasks = []
        for _ in range(10):
            lock = relief.lock(client, "lock", timeout=30, sleep=0.02)
            tasks.append(asyncio.ensure_future(lock.acquire()))
            await asyncio.sleep(0)
        for task in tasks[:9]:
            task.cancel()
        await asyncio.sleep(0)
        await holder.release()
        assert await asyncio.wait_for(tasks[9], 5) is True
        assert relief.stats().waiting == 0


def test_a_forked_child_stands_in_a_line_of_its_own(valkey: str, relief: LockRelief) -> None:
    host, _, port = valkey.rpartition(":")
    with redis.Redis(host, int(port)) as client:
        client.set("lock", "held by somebody else")
        stop = threading.Event()

        def contend() -> None:
            while not stop.is_set():
                lock = relief.lock(client, "lock", timeout=10, sleep=0.02)
                if lock.acquire(blocking_timeout=0.1):
                    lock.release()

        threads = [threading.Thread(target=contend) for _ in range(4)]
        for thread in threads:
            thread.start()
        while relief.stats().asked < 3:
            time.sleep(0.001)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException), redis.Redis(host, int(port)) as own:
                own.delete("lock")
                lock = relief.lock(own, "lock", timeout=10, sleep=0.02)
                if lock.acquire(blocking_timeout=10):
                    own.set("child", 1)
                    lock.release()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        stop.set()
        for thread in threads:
            thread.join()
        assert relief.stats().waiting == 0
        # The child asked for the lock while its parent did; both got theirs in the end.
        assert client.get("child") == b"1"


def test_an_error_of_the_server_is_the_callers_and_the_line_goes_on(
    own_server: EmbeddedServer, relief: LockRelief
) -> None:
    with own_server.client() as client:
        lock = relief.lock(client, "lock", timeout=10)
        client.acl_setuser("default", commands=["-set"])
        with pytest.raises(redis.ResponseError):
            lock.acquire()
        assert relief.stats().waiting == 0
        client.acl_setuser("default", commands=["+set"])
        assert lock.acquire(blocking_timeout=5)


def test_switched_off_every_contender_asks(valkey: str, relief: LockRelief) -> None:
    host, _, port = valkey.rpartition(":")
    relief.enabled = False
    with redis.Redis(host, int(port)) as client, relief.lock(client, "lock", timeout=10):
        assert relief.stats().waited == 0


def test_a_head_stands_back_for_one_interval_after_its_hand_overs() -> None:
    now = [0.0]
    lines = Lines(handovers_max=2)

    def attempt() -> Any:
        return contending(lines, now, 1.0, None, lambda _: None)

    line = lines.join(b"l", Waiter(lambda: None))
    lines.acquired(line)
    lines.leave(b"l", line, line.waiters[0])
    for _ in range(2):
        head = attempt()
        assert next(head) == Wait(1.0)  # somebody here holds it
        lines.released(b"l", 1.0, now[0])
        assert head.send(True) == Ask()  # without the host's turn, which others have
        with pytest.raises(StopIteration):
            head.send(True)
    head = attempt()
    assert next(head) == Wait(1.0)
    lines.released(b"l", 1.0, now[0])
    assert head.send(True) == Wait(1.0)
    now[0] = 1.0
    assert head.send(False) == Wait(0.1)  # looks for the host's turn from now on
    head.close()
    assert lines.waiting == 0


def test_a_turn_is_one_holders_and_leaves_no_file(tmp_path: Path) -> None:
    mine, yours = HostTurns(tmp_path / "turns"), HostTurns(tmp_path / "turns")
    turn = mine.try_take(b"lock")
    assert turn is not None
    assert yours.try_take(b"lock") is None
    assert yours.try_take(b"other") is not None
    mine.give_back(turn)
    assert not mine.path(b"lock").exists()
    assert yours.try_take(b"lock") is not None


def test_a_directory_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    assert not HostTurns(tmp_path / "open").is_usable
    assert not HostTurns(tmp_path / "link").is_usable
    assert LockRelief(directory=tmp_path / "open").stats().host_failures == 1
    assert (HostTurns(tmp_path / "new").path(b"x").parent.stat().st_mode & 0o777) == 0o700


def test_a_setting_that_cannot_be_used_is_named() -> None:
    with pytest.raises(ConfigError, match="handovers_max"):
        LockRelief(handovers_max=-1)
