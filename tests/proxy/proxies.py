"""What tests do with a proxy: look at its counters, connect to it, wait for it, make keys hot in it."""

import json
import socket
import time
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.proxy.wire import Wire, say

HOT_RULE = {
    "name": "all",
    "match": {"any": True},
    "levels": [{"metric": "reads", "enter_per_s": 20}],
    "plan": ["local_cache"],
}


def stats(proxy: Any) -> dict[str, int]:
    """The proxy's counters."""
    counters: dict[str, int] = json.loads(proxy.stats())
    return counters


def connect(proxy: Any) -> socket.socket:
    """A plain connection to the proxy."""
    host, port = proxy.listen.rsplit(":", 1)
    s = socket.create_connection((host, int(port)))
    s.settimeout(20)
    return s


def client(proxy: Any, **options: Any) -> Any:
    """A redis-py client that does not try again by itself."""
    host, port = proxy.listen.rsplit(":", 1)
    return redis.Redis(host=host, port=int(port), retry=Retry(NoBackoff(), 0), **options)


def ask(s: socket.socket, line: bytes) -> bytes:
    """One request, one short reply."""
    s.sendall(line)
    return s.recv(4096)


def is_up(proxy: Any) -> bool:
    """Whether a request is served."""
    with connect(proxy) as s:
        return ask(s, b"EXISTS x\r\n").startswith(b":")


def ready(proxy: Any, eventually: Any) -> Any:
    """The proxy, once it knows its upstream."""
    eventually(lambda: is_up(proxy))
    return proxy


def heat(proxy: Any, wire: Wire, *keys: str) -> None:
    """Read keys until they are answered from memory."""
    deadline = time.monotonic() + 10
    before = json.loads(proxy.stats())["local_hits"]
    while json.loads(proxy.stats())["local_hits"] < before + 40 * len(keys):
        assert time.monotonic() < deadline
        say(wire, *[f"GET {key}" for key in keys] * 10)
        time.sleep(0.005)
