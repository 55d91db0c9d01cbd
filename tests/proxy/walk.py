"""A short walk through what a client expects of a server, for each way of connecting to the proxy."""

from typing import Any

import redis


def walk(client: redis.Redis, other: redis.Redis, value: bytes) -> None:
    """Take it with `client`, which is closed; `other` is connected in another way, and sees the same."""
    assert client.set("big", value)
    assert client.get("big") == value
    assert other.get("big") == value
    pipe = client.pipeline()
    for number in range(1_000):
        pipe.set(f"k:{number}", number)
        pipe.get(f"k:{number}")
    assert pipe.execute()[1::2] == [b"%d" % number for number in range(1_000)]
    pubsub = client.pubsub()
    pubsub.subscribe("news")
    assert pubsub.get_message(timeout=5) is not None
    other.publish("news", "hello")
    message: Any = pubsub.get_message(timeout=5)
    assert message["data"] == b"hello"
    pubsub.close()
    client.close()
