"""Values and how they are shown."""

import pytest

from keyheat.errors import InternalError
from keyheat.model import HotSet, printable


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (b"item:1", "item:1"),
        ("café".encode(), "café"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"a\nb\r\t\x00", "a\\x0ab\\x0d\\x09\\x00"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"back\\slash", "back\\\\slash"),
        ("\u202eevil".encode(), "\\xe2\\x80\\xaeevil"),
    ],
)
def test_a_key_cannot_move_the_cursor(key: bytes, shown: str) -> None:
    assert printable(key) == shown


def test_a_binary_key_survives_the_hot_set() -> None:
    found = HotSet.from_json('{"version": 3, "keys": [{"key": "?", "key_base64": "/wAb"}]}')
    assert found.keys[0].key == b"\xff\x00\x1b"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1, "keys": [1]}', "<html>"])
def test_what_is_no_hot_set_is_an_error(text: str) -> None:
    with pytest.raises(InternalError, match="not a keyheat hot set"):
        HotSet.from_json(text)
