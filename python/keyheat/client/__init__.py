"""The protected client."""

from keyheat.client.handle import Handle
from keyheat.client.protect import protect
from keyheat.client.settings import ClientSettings

__all__ = ["ClientSettings", "Handle", "protect"]
