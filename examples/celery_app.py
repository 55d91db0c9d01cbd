"""A Celery worker with keyheat: what belongs where among its processes.

    pip install 'keyheat[examples]' celery
    celery --app examples.celery_app worker --concurrency 2
    python -c 'from examples.celery_app import viewed; viewed.delay(7)'

Celery imports this module in the parent and forks the workers from it. A protected client may be made in the
parent: a forked worker finds its own hot keys, on connections of its own. What collects in memory has to be
sent before the worker ends, and Celery's workers end without `atexit`: so `worker_process_shutdown` does it.

The broker and result backend are Celery's own business: their clients are not protected, and need not be.
"""

import os
from typing import Any

import redis
from celery import Celery  # type: ignore[import-not-found, import-untyped, unused-ignore]
from celery.signals import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    worker_process_init,
    worker_process_shutdown,
)

from keyheat import protect
from keyheat.integrations.hot_key_log import HotKeyLog
from keyheat.mitigate import HotCounter, Loader

URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")

app = Celery("shop", broker=URL, backend=URL)
client = protect(redis.Redis.from_url(URL))
loader = Loader(client)
views = HotCounter(client, "views")
_of_this_process: list[Any] = []


@loader.cached("item:{item}", ttl=60)
def described(item: int) -> str:
    """The slow source."""
    return f"item {item}"


@app.task  # type: ignore[untyped-decorator, unused-ignore]
def viewed(item: int) -> str:
    """A task that reads a hot key and counts."""
    views.incr()
    return described(item)


@worker_process_init.connect  # type: ignore[untyped-decorator, unused-ignore]
def _begin(**_: object) -> None:
    _of_this_process.append(HotKeyLog(client).start())


@worker_process_shutdown.connect  # type: ignore[untyped-decorator, unused-ignore]
def _end(**_: object) -> None:
    while _of_this_process:
        _of_this_process.pop().stop()
    views.close()
    client.close()
