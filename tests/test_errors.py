"""The tree of errors."""

from keyheat import errors
from keyheat.errors import KeyheatError

CLASSES = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KeyheatError)
]


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    tree = errors.__doc__ or ""
    assert [kind.__name__ for kind in CLASSES if kind.__name__ not in tree] == []


def test_every_error_has_a_slug_of_its_own() -> None:
    assert len({kind.slug for kind in CLASSES}) == len(CLASSES) > 5
