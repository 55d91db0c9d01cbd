"""keyheat finds the hot keys of any Redis or Valkey deployment and makes them harmless."""

from keyheat.client import ClientSettings, protect
from keyheat.errors import KeyheatError
from keyheat.model import Access, HotKey, HotSet

__all__ = ["Access", "ClientSettings", "HotKey", "HotSet", "KeyheatError", "protect"]
