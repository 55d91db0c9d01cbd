"""keyheat finds the hot keys of any Redis or Valkey deployment and makes them harmless."""

from typing import Any

from keyheat.client import ClientSettings, protect
from keyheat.errors import KeyheatError
from keyheat.model import Access, HotKey, HotSet

__all__ = ["Access", "ClientSettings", "HotKey", "HotSet", "KeyheatError", "protect"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever it is there
    """The remedies, from `keyheat.mitigate`: imported when one is asked for."""
    import keyheat.mitigate  # noqa: PLC0415

    if name in keyheat.mitigate.__all__:
        return getattr(keyheat.mitigate, name)
    raise AttributeError(f"module 'keyheat' has no attribute {name!r}")
