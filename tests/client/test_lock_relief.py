"""Locks of a protected client with `lock_relief`."""

import asyncio
import inspect
import threading
import time
from typing import Any

import redis
import redis.asyncio

from keyheat import protect
from keyheat.server.embedded import EmbeddedServer


def attempts(server: EmbeddedServer) -> int:
    with server.client() as admin:
        return int(admin.info("commandstats").get("cmdstat_set", {}).get("calls", 0))


def test_one_contender_asks_the_server_at_a_time(own_server: EmbeddedServer) -> None:
    client = protect(redis.Redis(port=own_server.port), lock_relief=True)
    holder = client.lock("L", 30)
    assert isinstance(holder, redis.lock.Lock)
    assert holder.acquire()
    taken: list[bool] = []

    def contend() -> None:
        lock = client.lock("L", timeout=30, sleep=0.1, blocking_timeout=30)
        taken.append(lock.acquire())
        lock.release()

    threads = [threading.Thread(target=contend) for _ in range(40)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    before, start = attempts(own_server), time.monotonic()
    time.sleep(1.0)
    intervals = (time.monotonic() - start) / 0.1
    assert attempts(own_server) - before <= intervals + 2
    holder.release()
    for thread in threads:
        thread.join()
    assert taken == [True] * 40
    with client.lock("L", timeout=5):
        assert not client.lock("L").acquire(blocking=False)
    client.close()


def test_an_asyncio_lock_stands_in_line_too(own_server: EmbeddedServer) -> None:
    async def contend() -> Any:
        client = protect(redis.asyncio.Redis(port=own_server.port), lock_relief=True)
        order: list[int] = []

        async def enter(number: int) -> None:
            async with client.lock("L", timeout=5, sleep=0.01):
                order.append(number)

        await asyncio.gather(*(enter(number) for number in range(20)))
        await client.aclose()
        return order

    assert sorted(asyncio.run(contend())) == list(range(20))


def test_a_class_of_the_applications_own_is_left_alone(own_server: EmbeddedServer) -> None:
    class Own(redis.lock.Lock):
        pass

    client = protect(redis.Redis(port=own_server.port), lock_relief=True)
    assert type(client.lock("L", lock_class=Own)) is Own
    assert inspect.signature(client.lock) is not None
    plain = protect(redis.Redis(port=own_server.port))
    assert type(plain.lock("L")) is redis.lock.Lock
    client.close()
    plain.close()
