"""Threads, event loops, forks and ends: nothing hangs, is left behind, or is shared by mistake."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyheat.client import protect
from keyheat.server.embedded import EmbeddedServer
from tests.client.sides import RULES, Side, hits, raw, threads_of_keyheat, until_local

Eventually = Callable[..., Any]
# Makes an engine of a test's own; see `Side.settings`.
OWN = iter(range(500, 1000))


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Clients of earlier tests may be in cycles; here it counts what is still there."""
    gc.collect()
    yield
    gc.collect()


def new_client(address: str, **settings: Any) -> Any:
    """A protected blocking client with an engine of its own."""
    host, port = address.split(":")
    return protect(redis.Redis(host, int(port)), **{"rules": RULES, "hot_keys_max": next(OWN), **settings})


def open_fds() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  a count, and no objects made for it


def settled_threads() -> int:
    """How many engine threads are there for good: a test that failed keeps its clients."""
    gc.collect()
    count, since = threads_of_keyheat(), time.monotonic()
    while time.monotonic() - since < 0.1:
        time.sleep(0.01)
        if (now := threads_of_keyheat()) != count:
            count, since = now, time.monotonic()
    return count


def heat(client: Any, key: str = "hot") -> None:
    """Make a key hot and its reads local."""
    until_local(client, lambda: client.get(key))


# ---------------------------------------------------------------- threads


def test_sixteen_threads_read_and_write_without_a_wrong_answer(valkey: str) -> None:
    with new_client(valkey) as client:
        for number in range(16):
            client.set(f"key:{number}", 0)
        client.set("shared", "constant")
        failures: list[Any] = []

        def run(own: str) -> None:
            try:
                for number in range(1, 400):
                    if number % 20 == 0:
                        client.set(own, number)
                        last = number
                    elif number > 20:
                        assert int(client.get(own)) == last
                    assert client.get("shared") == b"constant"
                    if number % 50 == 0:
                        pipe = client.pipeline()
                        pipe.get("shared")
                        pipe.set(own, number)
                        assert pipe.execute() == [b"constant", True]
                        last = number
            except BaseException as error:  # noqa: BLE001
                failures.append((own, repr(error)))

        threads = [threading.Thread(target=run, args=(f"key:{n}",)) for n in range(16)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
            assert not each.is_alive()
        assert failures == []
        assert hits(client) > 1000


def test_waiters_look_after_themselves_when_the_reader_they_wait_for_fails(
    own_server: EmbeddedServer,
) -> None:
    host, port = own_server.address.split(":")
    plain = redis.Redis(host, int(port), socket_timeout=0.3, retry=Retry(NoBackoff(), 0))
    with protect(plain, rules=RULES, hot_keys_max=next(OWN), local_cache=False) as client:
        client.set("hot", "1")
        while not client.keyheat.hot_keys():
            client.get("hot")
        client.get("hot")  # a client learns with a reply that something is hot
        answers: list[Any] = []

        def read() -> None:
            try:
                answers.append(client.get("hot"))
            except redis.TimeoutError as error:
                answers.append(type(error))

        own_server.pause()
        threads = [threading.Thread(target=read) for _ in range(8)]
        for each in threads:
            each.start()
        time.sleep(0.1)
        for each in threads:
            each.join(20)
            assert not each.is_alive()
        own_server.resume()
        assert len(answers) == 8
        assert set(answers) <= {redis.TimeoutError, b"1"}
        assert client.get("hot") == b"1"
        assert client.keyheat.stats()["joins"] > 0


# ---------------------------------------------------------------- asyncio


def test_a_cancelled_reader_leaves_its_waiters_an_answer(own_server: EmbeddedServer) -> None:
    async def run() -> None:
        host, port = own_server.address.split(":")
        client: Any = protect(
            redis.asyncio.Redis(host=host, port=int(port)),
            rules=RULES,
            hot_keys_max=next(OWN),
            local_cache=False,
        )
        await client.set("hot", "1")
        while not client.keyheat.hot_keys():
            await client.get("hot")
        await client.get("hot")  # a client learns with a reply that something is hot
        # Each round: the first reads, the others join it; then it is cancelled in the middle.
        for pause_s in (0.0, 0.0, 0.01):
            joins = client.keyheat.stats()["joins"]
            own_server.pause()
            leader = asyncio.ensure_future(client.get("hot"))
            await asyncio.sleep(0.01)
            waiters = [asyncio.ensure_future(client.get("hot")) for _ in range(10)]
            await asyncio.sleep(pause_s)
            leader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leader
            own_server.resume()
            assert await asyncio.wait_for(asyncio.gather(*waiters), 10) == [b"1"] * 10
            assert client.keyheat.stats()["joins"] > joins
        # Cancelled waiters harm nobody.
        own_server.pause()
        tasks = [asyncio.ensure_future(client.get("hot")) for _ in range(10)]
        await asyncio.sleep(0.01)
        for task in tasks[1::2]:
            task.cancel()
        own_server.resume()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert done[::2] == [b"1"] * 5
        await client.aclose()

    asyncio.run(run())


def test_a_fill_that_is_cancelled_keeps_replies_in_step(valkey: str) -> None:
    async def run() -> None:
        host, port = valkey.split(":")
        client: Any = protect(
            redis.asyncio.Redis(host=host, port=int(port), single_connection_client=False, max_connections=2),
            rules=RULES,
            hot_keys_max=next(OWN),
        )
        for number in range(5):
            await client.set(f"key:{number}", number)
        for number in range(400):
            name = number % 5
            task = asyncio.ensure_future(client.get(f"key:{name}"))
            for _ in range(number % 7):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert await task == b"%d" % name
            client.keyheat.clear()
            assert await client.get(f"key:{(number + 1) % 5}") == b"%d" % ((number + 1) % 5)
        await client.aclose()

    asyncio.run(run())


def test_event_loops_one_after_the_other_work(valkey: str) -> None:
    host, port = valkey.split(":")
    number_of_engine = next(OWN)

    async def run(number: int) -> int:
        client: Any = protect(
            redis.asyncio.Redis(host=host, port=int(port)), rules=RULES, hot_keys_max=number_of_engine
        )
        await client.set("hot", number)
        deadline = time.monotonic() + 10
        before = hits(client)
        while hits(client) < before + 10:
            assert await client.get("hot") == b"%d" % number
            assert time.monotonic() < deadline
        replies = await asyncio.gather(*(client.get("hot") for _ in range(50)))
        assert set(replies) == {b"%d" % number}
        await client.aclose()
        return hits(client)

    for number in range(3):
        assert asyncio.run(run(number)) > 0


def test_one_client_in_two_event_loops_is_told_nothing_wrong(valkey: str) -> None:
    # An asyncio client belongs to a loop, but its local answers need none.
    host, port = valkey.split(":")
    client: Any = protect(redis.asyncio.Redis(host=host, port=int(port)), rules=RULES, hot_keys_max=next(OWN))

    async def first() -> None:
        await client.set("hot", "1")
        before = hits(client)
        while hits(client) < before + 10:
            assert await client.get("hot") == b"1"
        await client.connection_pool.disconnect()

    async def second() -> None:
        for _ in range(20):
            assert await client.get("hot") == b"1"
        await client.aclose()

    asyncio.run(first())
    asyncio.run(second())


# ---------------------------------------------------------------- forks


def fork(run: Callable[[], None]) -> int:
    """Run it in a fork of this process; returns the child's id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: that is the point
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        run()
        status = 0
    except BaseException as error:  # noqa: BLE001
        os.write(2, f"child: {error!r}\n".encode())
    finally:
        os._exit(status)


def reap(pids: list[int], timeout_s: float = 30.0) -> None:
    """Wait for children that must all have ended well."""
    deadline = time.monotonic() + timeout_s
    for pid in pids:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0
                break
            if time.monotonic() > deadline:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                raise AssertionError(f"child {pid} hangs")
            time.sleep(0.005)


def test_children_of_a_busy_parent_are_protected_on_their_own(valkey: str) -> None:
    with new_client(valkey) as client:
        client.set("hot", "1")
        heat(client)
        over = threading.Event()

        def read_on() -> None:
            while not over.is_set():
                assert client.get("hot") is not None
                client.set("other", "1")

        threads = [threading.Thread(target=read_on) for _ in range(4)]
        for each in threads:
            each.start()

        def child() -> None:
            name = f"child:{os.getpid()}"
            client.set(name, "mine")
            heat(client, name)
            assert client.get(name) == b"mine"
            assert client.keyheat.stats()["tracking_lost"] == 0
            client.set(name, "new")
            assert client.get(name) == b"new"
            pipe = client.pipeline()
            pipe.get(name)
            assert pipe.execute() == [b"new"]
            # A grandchild too.
            reap([fork(lambda: heat(client, name + ":child"))])

        for _ in range(3):
            reap([fork(child) for _ in range(4)])
        over.set()
        for each in threads:
            each.join(10)
            assert not each.is_alive()
        before = hits(client)
        heat(client)
        assert hits(client) > before
        assert client.keyheat.stats()["tracking_lost"] == 0


def test_a_child_that_protects_a_client_of_its_own_works(valkey: str) -> None:
    with new_client(valkey) as client:
        heat(client)

        def child() -> None:
            with new_client(valkey) as own:
                heat(own)
            heat(client)
            gc.collect()

        reap([fork(child) for _ in range(2)])
        heat(client)


def test_a_child_may_drop_its_parents_client(valkey: str) -> None:
    made = [new_client(valkey)]
    heat(made[0])

    def child() -> None:
        made.clear()
        gc.collect()
        with new_client(valkey) as own:
            heat(own)

    reap([fork(child)])
    before = hits(made[0])
    heat(made[0])
    assert hits(made[0]) > before
    made.pop().close()


def in_process(address: str, number_of_engine: int) -> bytes:
    """For a worker of `multiprocessing`."""
    host, port = address.split(":")
    with protect(redis.Redis(host, int(port)), rules=RULES, hot_keys_max=number_of_engine) as client:
        heat(client)
        found: bytes = client.get("hot")
        return found


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_multiprocessing_work(valkey: str, method: str) -> None:
    with new_client(valkey) as client:
        client.set("hot", "1")
        heat(client)
        context: Any = multiprocessing.get_context(method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with context.Pool(2) as pool:
                asked = [pool.apply_async(in_process, (valkey, next(OWN))) for _ in range(4)]
                assert [each.get(60) for each in asked] == [b"1"] * 4
        heat(client)


# ---------------------------------------------------------------- ends


def test_a_client_that_is_gone_leaves_no_thread(valkey: str, eventually: Eventually) -> None:
    before = settled_threads()
    client = new_client(valkey)
    heat(client)
    assert threads_of_keyheat() == before + 1
    client.close()
    assert client.get("hot") is None  # redis-py: a closed client connects again
    client.close()
    del client
    gc.collect()
    eventually(lambda: threads_of_keyheat() == before, timeout_s=3)


def test_what_was_given_going_away_does_not_close_what_is_used(valkey: str) -> None:
    host, port = valkey.split(":")
    client = protect(redis.Redis(host, int(port)), rules=RULES, hot_keys_max=next(OWN))
    gc.collect()
    heat(client)
    assert client.ping()
    client.close()


def test_an_asyncio_client_that_is_gone_leaves_no_thread(valkey: str, eventually: Eventually) -> None:
    host, port = valkey.split(":")

    async def run() -> None:
        async with protect(
            redis.asyncio.Redis(host=host, port=int(port)), rules=RULES, hot_keys_max=next(OWN)
        ) as client:
            for _ in range(100):
                await client.get("hot")

    before = settled_threads()
    asyncio.run(run())
    gc.collect()
    eventually(lambda: threads_of_keyheat() == before, timeout_s=3)


def test_clients_of_one_deployment_share_a_thread(sync: Side, valkey: str) -> None:
    before = settled_threads()
    clients = [sync.protected(valkey) for _ in range(10)]
    for client in clients:
        heat(client)
    assert threads_of_keyheat() == before + 1
    assert raw(clients[0]).keyheat.stats()["tracking_opened"] == 1


def test_fifty_clients_one_after_the_other_leak_nothing(valkey: str, eventually: Eventually) -> None:
    def once() -> None:
        client = new_client(valkey)
        heat(client)
        client.close()

    threads_before = settled_threads()
    for _ in range(5):
        once()
    gc.collect()
    eventually(lambda: threads_of_keyheat() == threads_before, timeout_s=3)
    before = open_fds()
    for _ in range(50):
        once()
    gc.collect()
    eventually(lambda: threads_of_keyheat() == threads_before, timeout_s=3)
    assert open_fds() <= before + 2


PROGRAMS = {
    "at the end of the program": "",
    "with a thread that reads on": """
        import threading
        def read_on():
            while True:
                try:
                    client.get("hot")
                except Exception:
                    return
        for _ in range(3):
            threading.Thread(target=read_on, daemon=True).start()
    """,
    "with threads that write on": """
        import threading
        def write_on():
            while True:
                try:
                    client.set("other", "1")
                except Exception:
                    return
        for _ in range(3):
            threading.Thread(target=write_on, daemon=True).start()
        time.sleep(0.1)
    """,
    "by leaving": "raise SystemExit(0)",
    "with the client dropped": "del client",
    "after a fork": """
        import os
        pid = os.fork()
        heat()
        if pid == 0:
            raise SystemExit(0)
        os.waitpid(pid, 0)
    """,
}


@pytest.mark.parametrize("how", PROGRAMS)
def test_a_program_ends_quickly_and_silently(valkey: str, how: str) -> None:
    host, port = valkey.split(":")
    code = f"""
        import sys, time, redis
        from keyheat.client import protect
        rules = {RULES!r}
        client = protect(redis.Redis({host!r}, {port}), rules=rules)
        client.set("hot", "1")
        def heat():
            before = client.keyheat.stats()["local_hits"]
            while client.keyheat.stats()["local_hits"] < before + 10:
                assert client.get("hot") == b"1"
        heat()
        print(time.time(), flush=True)
    """
    program = textwrap.dedent(code) + textwrap.dedent(PROGRAMS[how])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    took_s = time.time() - float(done.stdout.split()[0])
    assert (done.returncode, done.stderr) == (0, "")
    assert took_s < 2


def test_a_program_ends_quickly_while_the_server_is_stopped(own_server: EmbeddedServer) -> None:
    code = f"""
        import os, signal, time, redis
        from keyheat.client import protect
        client = protect(redis.Redis("127.0.0.1", {own_server.port}), rules={RULES!r})
        while client.keyheat.stats()["local_hits"] < 10:
            client.get("hot")
        os.kill({own_server.pid}, signal.SIGSTOP)
        time.sleep(0.3)
        print(time.time(), flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    own_server.resume()
    assert (done.returncode, done.stderr) == (0, "")
    assert time.time() - float(done.stdout.split()[0]) < 3


def test_a_client_that_was_never_used_costs_no_connection(own_server: EmbeddedServer) -> None:
    with own_server.client() as direct, new_client(own_server.address) as client:
        assert [each["name"] for each in direct.client_list()] == [""]
        assert client.keyheat.stats()["tracking_opened"] == 0
        client.set("a", "1")
        assert client.get("a") == b"1"
        names = [each["name"] for each in direct.client_list()]
        assert "keyheat-tracking" not in names
        heat(client)
        names = [each["name"] for each in direct.client_list()]
        assert names.count("keyheat-tracking") == 1
