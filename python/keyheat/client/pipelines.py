"""What a client makes that talks to the server by itself: pipelines, and locks that stand in line."""

import inspect
from typing import Any


def queued(pipeline: Any) -> list[tuple[Any, ...]]:
    """The commands that wait to be sent, as tuples of arguments."""
    strategy = getattr(pipeline, "_execution_strategy", None)
    for owner, name in (
        (strategy, "_command_queue"),
        (pipeline, "_command_stack"),
        (pipeline, "command_stack"),
    ):
        queue = getattr(owner, name, None)
        if queue:
            return [tuple(command.args if hasattr(command, "args") else command[0]) for command in queue]
    return []


def relieved_lock(client: Any, make: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The lock that `client.lock(…)` returns where relief is on.

    Args:
        client: A protected client.
        make: Its own `lock` method.
        args: What it was called with.
        options: The same, by name.
    """
    given = inspect.signature(make).bind(*args, **options).arguments
    flat = {name: value for name, value in given.items() if name != "kwargs"} | given.get("kwargs", {})
    if flat.pop("lock_class", None) is not None:
        return make(*args, **options)  # a class of the application's own
    return client.keyheat.binding.relief.lock(client, flat.pop("name"), **flat)
