"""The command `keyheat`."""

from keyheat.cli.app import main

__all__ = ["main"]
