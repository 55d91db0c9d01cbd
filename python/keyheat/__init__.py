"""keyheat finds the hot keys of any Redis or Valkey deployment and makes them harmless."""

from keyheat.errors import KeyheatError
from keyheat.model import Access, HotKey, HotSet

__all__ = ["Access", "HotKey", "HotSet", "KeyheatError"]
