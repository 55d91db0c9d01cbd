"""What waits in a pipeline, whichever it is."""

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
